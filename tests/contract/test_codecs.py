"""Every codec of the table: what is decoded has the names, shapes and dtypes of what was encoded."""

import subprocess
import sys

import pytest
import torch

from fedctl.codecs import CODECS, build
from fedctl.errors import ConfigError
from fedctl.soundness import check_update
from fedctl.weights import save

WEIGHTS = {
    "weight": torch.randn(5, 3),
    "half": torch.randn(4).half(),
    "scalar": torch.tensor(2.5),
    "nothing": torch.empty(0, 2),
    "bn.num_batches_tracked": torch.tensor(7),
    "mask": torch.tensor([True, False]),
}
LARGEST_ERROR = {"none": 0.0}


@pytest.mark.parametrize("name", CODECS)
def test_weights_come_back(name, tmp_path):
    codec = build(name)
    encoded = codec.encode(WEIGHTS)
    save(tmp_path / "update.safetensors", encoded)
    decoded = codec.decode(encoded)
    check_update(decoded, WEIGHTS)
    for key, tensor in WEIGHTS.items():
        assert torch.allclose(decoded[key].double(), tensor.double(), rtol=LARGEST_ERROR[name], atol=0), key


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="codec: there is none called 'non'") as error:
        build("non")
    assert error.value.hint == "did you mean `none`?"


def test_a_name_is_checked_without_torch():
    code = "import sys, fedctl.codecs; assert 'none' in fedctl.codecs.CODECS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
