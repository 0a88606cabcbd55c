"""`fedctl provision` as a user types it, over nodes of this machine and one that cannot be reached."""


def test_the_second_time_there_is_nothing_to_do(fedctl):
    fedctl("init", "fed", "--template", "blank")
    first = fedctl("provision", "-f", "fed/fed.yaml", "--json")
    assert first.code == 0
    assert (first.json["changed"], first.json["failed"]) == (True, False)
    assert {node["bundle"] for node in first.json["nodes"]} == {"sent"}
    second = fedctl("provision", "-f", "fed/fed.yaml")
    assert second.code == 0
    assert "the coordinator's" in second.out
    assert second.err == "nothing to do: every node is ready\n"
    assert fedctl("provision", "-f", "fed/fed.yaml", "--json").json["changed"] is False


def test_a_node_that_cannot_be_made_ready_ends_with_4_and_the_others_are_ready(fedctl):
    fedctl("init", "fed", "--template", "blank")
    said = fedctl("provision", "-f", "fed/fed.yaml", "--set", "nodes.alice.python=/nowhere/python")
    assert said.code == 4
    assert "failed" in said.out
    assert "the coordinator's" in said.out
    assert "alice: " in said.err
    assert "/nowhere/python" in said.err
    nodes = {
        node["name"]: node
        for node in fedctl(
            "provision", "-f", "fed/fed.yaml", "--json", "--set", "nodes.alice.python=/nowhere/python"
        ).json["nodes"]
    }
    assert nodes["bob"]["error"] is None
    assert "/nowhere/python" in nodes["alice"]["error"]["message"]


def test_a_wheelhouse_without_wheels_is_refused_before_anything_is_touched(fedctl, tmp_path):
    fedctl("init", "fed", "--template", "blank")
    before = sorted(tmp_path.rglob("*"))
    said = fedctl(
        "provision",
        "-f",
        "fed/fed.yaml",
        "--set",
        "nodes.alice.host=far.example.org",
        "--set",
        "nodes.alice.wheelhouse=./wheels",
    )
    assert said.code == 3
    assert "wheels is no folder" in said.err
    assert "pip download" in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_looks_like_code_and_stays_is_said(fedctl, tmp_path):
    fedctl("init", "fed", "--template", "blank")
    (tmp_path / "fed" / "data").mkdir()
    (tmp_path / "fed" / "data" / "names.json").write_text("{}")
    (tmp_path / "fed" / "secrets.py").write_text("")
    assert "left out: data/ (1 file), secrets.py\n" in fedctl("provision", "-f", "fed/fed.yaml").err
    stays = {"data/": 1, "secrets.py": 1}
    assert fedctl("provision", "-f", "fed/fed.yaml", "--json").json["left_out"] == stays
    assert "data/ (1 file), secrets.py" in fedctl("launch", "-f", "fed/fed.yaml", "--dry-run").out
    assert fedctl("launch", "-f", "fed/fed.yaml", "--dry-run", "--json").json["left_out"] == stays


def test_a_module_that_stays_is_named_where_it_is_missing(fedctl, tmp_path):
    fedctl("init", "fed", "--template", "blank")
    (tmp_path / "fed" / "credentials.py").write_text("")
    model = tmp_path / "fed" / "model.py"
    model.write_text(f"import credentials\n{model.read_text()}")
    said = fedctl("launch", "-f", "fed/fed.yaml", "--dry-run")
    assert said.code == 3
    assert "No module named 'credentials'" in said.err
    assert "credentials.py is here and goes to no node" in said.err
