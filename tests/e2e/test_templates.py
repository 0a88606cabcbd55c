"""The other templates, both Lightnings, a held run, and the wheel."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def test_hospitals(make_place):
    place = make_place("hospitals")
    place.fedctl("launch", "--run", "r", "--set", "rounds=5")
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert status["metrics"]["val_acc"] > 0.7
    assert {node["name"] for node in status["nodes"]} == {"cleveland", "hungary", "switzerland", "va-long-beach"}


def test_wearables(make_place):
    """The common model learns, and the watches' own models are better on what their people do."""
    place = make_place("wearables")
    place.fedctl("launch", "--run", "r", "--set", "rounds=6")
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert len(status["nodes"]) == 10
    assert status["metrics"]["val_acc"] > 0.7
    scored = [event for event in place.events("r") if event["event"] == "ModelEvaluated"]
    tuned = [event["scores"] for event in scored if event["task"].endswith("/f1")]
    assert len(tuned) == 10
    common, own = (
        sum(scores[label]["examples"] * scores[label]["metrics"]["val_acc"] for scores in tuned) / 1420
        for label in ("global", "personal")
    )
    assert own > common + 0.02


def test_lora(make_place, lora_packages, monkeypatch):
    """Two archives and few passages: only adapters and head travel, and they learn."""
    monkeypatch.setenv("PYTHONPATH", str(lora_packages))
    place = make_place("lora")
    place.edit("fed.yaml", "  - {name: dallas, host: local, data: {archive: 2}}\n", "")
    place.edit("fed.yaml", "  - {name: seattle, host: local, data: {archive: 3}}\n", "")
    place.fedctl("launch", "--run", "r", "--set", "rounds=2", "--set", "task.data_args.passages=3")
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert status["metrics"]["val_acc"] > 0.4
    model = load_file(place.folder / "runs/r/model.safetensors")
    assert sum(tensor.numel() for tensor in model.values()) > 22_000_000
    sent = [event["update"]["size"] for event in place.events("r") if event.get("update")]
    assert len(sent) == 4
    assert max(sent) < 400_000


def test_a_held_run_with_the_other_lightning(make_place):
    """`lightning.pytorch` in place of `pytorch_lightning`; rounds closed by hand."""
    place = make_place("blank")
    for file in ("model.py", "data.py"):
        place.edit(file, "import pytorch_lightning as pl", "import lightning.pytorch as pl")
    place.fedctl("launch", "--run", "r", "--hold", "--set", "rounds=2")
    assert place.json("status", "r")["state"] == "held"
    first = place.json("aggregate", "r", "--commit", "--strategy", "median")
    assert (first["round"], first["contributors"]) == (1, ["alice", "bob"])
    assert "holds no round" in place.fedctl("aggregate", "r", "--commit", code=7).stderr
    place.fedctl("launch", "--resume", "r", "--hold")
    place.fedctl("aggregate", "r", "--commit")
    place.fedctl("launch", "--resume", "r")
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert status["round"] == 2


def test_a_dry_run_and_a_check_touch_nothing(make_place):
    place = make_place("blank")
    before = sorted(place.folder.rglob("*"))
    plan = place.json("launch", "--dry-run", "--set", "rounds=9")
    assert plan["rounds"] == 9
    assert plan["forecast"]["round"]["received"] == 2 * plan["model"]["size"]
    found = place.json("check")
    assert found["passed"]
    assert {one["name"] for one in found["nodes"]["alice"]} >= {
        "reach",
        "python",
        "packages",
        "memory",
        "disk",
        "clock",
    }
    assert sorted(place.folder.rglob("*")) == before
    assert place.processes() == []


def test_the_wheel_works_from_another_folder(tmp_path):
    """Built and installed not editable, in an environment that borrows only the dependencies of this one."""
    wheels = tmp_path / "wheels"
    run = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*run, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
        ).stdout.strip()
    )
    wheel = next(wheels.glob("fedctl_ssh-*.whl"))
    target = ["--no-deps", "--no-index", "--target", str(packages), str(wheel)]
    subprocess.run([*run, "install", *target], check=True)
    borrowed = Path(sysconfig.get_path("purelib"))
    for entry in borrowed.iterdir():
        if "fedctl" not in entry.name and not (packages / entry.name).exists() and not entry.name.endswith(".pth"):
            (packages / entry.name).symlink_to(entry)

    environment = {**os.environ, "FEDCTL_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
    environment.pop("PYTHONPATH", None)

    def fedctl(*arguments: str) -> str:
        code = "import sys, fedctl; assert 'site-packages' in fedctl.__file__; from fedctl.cli import main; main()"
        command = [str(python), "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    fedctl("init", "mine", "--template", "digits")
    fedctl("launch", "-f", "mine/fed.yaml", "--run", "r", "--set", "rounds=1", "--set", "compare=false")
    assert '"finished"' in fedctl("status", "r", "-f", "mine/fed.yaml", "--json")
    fedctl("clean", "r", "-f", "mine/fed.yaml")
