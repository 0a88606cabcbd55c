import hashlib

import pytest

from fedctl import bundle
from fedctl.environment import (
    Environment,
    Given,
    compose,
    differences,
    environments,
    is_recent,
    missing,
    pinned,
    version_here,
)
from fedctl.errors import ConfigError
from fedctl.federation import Federation, Node, TaskSpec

PINS = {"torch": "2.13.0", "pytorch-lightning": "2.6.6", "numpy": "2.4.6", "safetensors": "0.8.0"}
WHOLE = "torch==2.13.0\npytorch-lightning==2.6.6\nnumpy==2.4.6\nsafetensors==0.8.0\n"


def federation(folder, *nodes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text("import pytorch_lightning\n")
    (folder / "data.py").write_text("")
    task = TaskSpec(model="model.py:Net", data="data.py:Data")
    return Federation(name="x", folder=folder, task=task, nodes=nodes or (Node(name="a"),))


def packed(folder):
    """A bundle with nothing of a user's but two small files."""
    return bundle.pack(federation(folder))


class TestCompose:
    def test_without_requirements_it_is_what_tasks_need(self):
        assert compose("", PINS) == WHOLE

    def test_what_the_user_wrote_stays_as_it_is_and_goes_first(self):
        written = "# ours\n--extra-index-url https://x/simple\nscikit-learn >= 1.5  # for digits\n"
        assert compose(written, PINS) == written + WHOLE

    @pytest.mark.parametrize(
        "line",
        [
            "numpy",
            "numpy>=1.26",
            "NumPy ~= 2.0",
            "numpy[extra]==2.0",
            "numpy; python_version < '3.12'",
            "numpy @ https://x/numpy.whl",
            "numpy==2.0 \\\n  --hash=sha256:00",
            "numpy==1 # pinned",
        ],
    )
    def test_a_package_that_the_user_names_is_the_users(self, line):
        assert compose(line, PINS) == f"{line}\n" + WHOLE.replace("numpy==2.4.6\n", "")

    @pytest.mark.parametrize("name", ["pytorch_lightning", "PyTorch.Lightning", "pytorch--lightning"])
    def test_names_are_compared_as_indexes_do(self, name):
        assert "pytorch-lightning==" not in compose(f"{name}==2.0\n", PINS)

    @pytest.mark.parametrize("line", ["numpydoc", "# numpy", "my-torch", "--index-url https://numpy/simple"])
    def test_a_name_within_another_is_another(self, line):
        assert compose(line, PINS) == f"{line}\n{WHOLE}"

    @pytest.mark.parametrize(
        "line",
        [
            "-r base.txt",
            "-rbase.txt",
            "--requirement=base.txt",
            "-c pins.txt",
            "-e .",
            "-f wheels",
            "--find-links=./wheels",
            "--editable lib",
            ".",
            "./lib",
            "../lib",
            "/opt/lib",
            "~/lib",
            "file:lib",
        ],
    )
    def test_a_line_that_needs_another_file_is_refused(self, line):
        with pytest.raises(ConfigError, match=r"requirements\.txt:2: .* needs another file"):
            compose(f"numpy\n{line}\n", PINS)

    def test_a_version_that_is_not_known_is_not_pinned(self):
        assert compose("", {"torch": "2.13.0", "lightning": ""}) == "torch==2.13.0\nlightning\n"


def test_the_pins_are_the_versions_here_without_the_build():
    assert list(pinned("lightning")) == ["torch", "lightning", "numpy", "safetensors"]
    assert all(version and "+" not in version for version in pinned("lightning").values())
    assert version_here("no-such-package") is None


SSH = Node(name="far", host="far.example.org")


class TestEnvironments:
    def test_each_node_gets_what_it_needs(self, tmp_path):
        given = Node(name="given", host="far.example.org", python="/opt/python")
        found = environments(federation(tmp_path, Node(name="here"), SSH, given))
        assert found.keys() == {"far", "given"}
        assert found["given"] == Given(python="/opt/python")
        assert found["far"].requirements == compose("", pinned("pytorch-lightning"))
        assert not found["far"].wheels

    @pytest.mark.parametrize(
        ("source", "package"),
        [("import lightning as L\n", "lightning"), ("import pytorch_lightning\n", "pytorch-lightning")],
    )
    def test_the_lightning_is_the_one_that_the_code_imports(self, tmp_path, source, package):
        described = federation(tmp_path, SSH)
        (tmp_path / "model.py").write_text(source)
        lines = environments(described)["far"].requirements.splitlines()
        assert [line.partition("==")[0] for line in lines] == ["torch", package, "numpy", "safetensors"]

    def test_requirements_beside_fed_yaml_count(self, tmp_path):
        described = federation(tmp_path, SSH)
        (tmp_path / "requirements.txt").write_text("numpy>=1.26\nscikit-learn\n")
        requirements = environments(described)["far"].requirements
        assert requirements.startswith("numpy>=1.26\nscikit-learn\ntorch==")
        assert requirements.count("numpy") == 1

    def test_wheels_are_named_by_their_digests(self, tmp_path):
        described = federation(tmp_path, Node(name="far", host="far.example.org", wheelhouse="./wheels"))
        (tmp_path / "wheels").mkdir()
        (tmp_path / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"wheel")
        (tmp_path / "wheels" / "notes.txt").write_bytes(b"no wheel")
        needs = environments(described)["far"].needs()["environment"]
        assert needs["wheels"] == {"a-1-py3-none-any.whl": hashlib.sha256(b"wheel").hexdigest()}

    @pytest.mark.parametrize(("make", "said"), [(True, "holds no wheels"), (False, "is no folder")])
    def test_a_wheelhouse_without_wheels_is_refused(self, tmp_path, make, said):
        described = federation(tmp_path, Node(name="far", host="far.example.org", wheelhouse="wheels"))
        if make:
            (tmp_path / "wheels").mkdir()
        with pytest.raises(ConfigError, match=f"node far: wheelhouse: .*wheels {said}") as caught:
            environments(described)
        assert "`pip download --dest" in caught.value.hint

    def test_a_wheelhouse_of_an_unknown_account_is_refused(self, tmp_path):
        described = federation(tmp_path, Node(name="far", host="far.example.org", wheelhouse="~no-such-account/wheels"))
        with pytest.raises(
            ConfigError, match="node far: wheelhouse: ~no-such-account/wheels: there is no such account"
        ):
            environments(described)


def test_what_is_asked_for_is_plain():
    environment = Environment(python="3.11", requirements="torch\n")
    assert environment.needs() == {"environment": {"python": "3.11", "requirements": "torch\n", "wheels": {}}}


def test_either_lightning_will_do():
    whole = {"torch": "2.13.0", "numpy": "2", "safetensors": "1", "lightning": "2", "pytorch-lightning": None}
    assert missing(whole) == []
    assert missing({**whole, "lightning": None, "torch": None}) == ["torch", "pytorch-lightning"]


def test_another_version_is_a_difference_and_another_build_is_none():
    here = version_here("torch")
    assert differences({"torch": f"{here}+cu130", "numpy": "0.1"}) == []
    assert differences({"torch": "1.0"}) == [f"torch is 1.0 there and {here} here"]


@pytest.mark.parametrize("version", ["3.10", "3.10.0", "3.11.2", "3.14.0rc1", "3.99", "4.0"])
def test_tasks_run_in_a_python_that_is_recent(version):
    assert is_recent(version)


@pytest.mark.parametrize(
    "version", ["3.9.19", "3.8", "3.1", "2.7.18", "3", "", "3.\u00b2", "9" * 5000, "x3.11", "3.1 1"]
)
def test_in_an_older_one_or_in_what_is_none_they_do_not(version):
    assert not is_recent(version)
