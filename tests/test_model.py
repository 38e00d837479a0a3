"Every model that the settings allow, on tiny backbones; export to the hub and back, offline."
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import huggingface_hub.hub_mixin as hub_mixin
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cesm_nb.core.terms import VIEWS
from cesm_nb.networks import backbones
from cesm_nb.networks.backbones import split_backbones
from cesm_nb.model import ABLATIONS, FourStream, load_model
from cesm_nb.core.settings import PAPER_BACKBONES
from cesm_nb.networks.weights import export_model
from conftest import PATIENCE, ROOT, WEIGHTS, needs_weights

FACTS = dict(phantom=True, image_size=32)


def tiny_backbone(name, width=512, pretrained=False, weights_dir='', in_chans=1):
    "A backbone of one layer, so that all models are fast to make."
    return nn.Sequential(nn.Conv2d(in_chans, 4, 8, 8), nn.ReLU(), nn.Flatten(),
                         nn.LazyLinear(width))


def breasts():
    "Three breasts of 64 pixels: both views, CC alone, no view; with age and density."
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x[1, 1] = x[2, :2] = 0
    return x


EVERY = dict(views=('both', *VIEWS), backbones=(PAPER_BACKBONES, *split_backbones(PAPER_BACKBONES)),
             metadata=(True, False), attention=(True, False), token_mlp=(True, False),
             share_views=(True, False), mask_missing_views=(True, False), token_kernel=(1, 3))


def test_every_combination_of_settings(monkeypatch):
    "576 models: shape, a gradient per parameter, pixels of a missing view, batches of one, reload."
    monkeypatch.setattr(backbones, 'make_backbone', tiny_backbone)
    x, real = breasts(), torch.tensor([[True, True], [True, False], [False, False]])
    for values in product(*EVERY.values()):
        settings = dict(zip(EVERY, values))
        torch.manual_seed(0)
        net = FourStream(**settings, width=16, drop_rate=0.)
        net(x).square().sum().backward()
        without = [n for n, p in net.named_parameters()
                   if p.grad is None or not p.grad.isfinite().all()]
        assert not without, settings
        n_tokens = (1 + (settings['views'] == 'both'))*len(split_backbones(settings['backbones']))
        assert net.forward_tokens(x)[0].shape == (3, n_tokens, 16), settings
        assert net.forward_features(x).shape == (3, 16 + 32*settings['metadata']), settings
        other = x.clone()
        other[1, 1], other[2, :2] = .7, .3 # pixels of a missing view
        unchanged = torch.equal(net(x, real), net(other, real))
        assert unchanged == settings['mask_missing_views'], settings
        net.eval()
        with torch.no_grad(): # a different code path inside PyTorch
            one_by_one = torch.cat([net(x[[i]], real[[i]]) for i in range(3)])
            assert_close(net(x, real), one_by_one, atol=1e-5, rtol=1e-4)
        again = FourStream(**net.settings)
        again.load_state_dict(net.state_dict())
        with torch.no_grad(): assert torch.equal(again.eval()(x, real), net(x, real)), settings


def test_parameter_names_match_old_checkpoints():
    "Names and shapes outside the backbones, as in the first version."
    state = FourStream().state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if not k.startswith('streams.')}
    assert shapes == {
        'mixer.attn.in_proj_weight': (1536, 512), 'mixer.attn.in_proj_bias': (1536,),
        'mixer.attn.out_proj.weight': (512, 512), 'mixer.attn.out_proj.bias': (512,),
        'mixer.mlp.0.weight': (512, 512, 1), 'mixer.mlp.0.bias': (512,),
        'mixer.mlp.2.weight': (512, 512, 1), 'mixer.mlp.2.bias': (512,),
        'mixer.norm1.weight': (512,), 'mixer.norm1.bias': (512,),
        'mixer.norm2.weight': (512,), 'mixer.norm2.bias': (512,),
        'meta.0.weight': (32, 2), 'meta.0.bias': (32,),
        'head.1.weight': (128, 544), 'head.1.bias': (128,),
        'head.4.weight': (3, 128), 'head.4.bias': (3,)}
    streams = {k.split('.')[1] for k in state if k.startswith('streams.')}
    assert streams == {'mobilenetv2_100', 'efficientnet_b0'}


@pytest.mark.parametrize('name', ABLATIONS)
def test_every_ablation_is_exported_and_read_back(name, tmp_path):
    net = FourStream(**ABLATIONS[name]).eval()
    back = load_model(export_model(net, tmp_path/'m', FACTS))
    assert (back.settings, back.facts) == (net.settings, FACTS)
    assert list(back.state_dict()) == list(net.state_dict())
    with torch.no_grad(): assert torch.equal(back(breasts()), net(breasts()))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A folder stands in for the hub: pushed to and pulled from."
    store = tmp_path/'hub'

    class Api:
        def __init__(self, token=None): pass

        def create_repo(self, repo_id, private=None, exist_ok=False):
            (store/repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return type('Url', (), dict(repo_id=repo_id))

        def upload_folder(self, *, repo_id, folder_path, **more):
            shutil.copytree(folder_path, store/repo_id, dirs_exist_ok=True)
            return f'https://huggingface.co/{repo_id}'

    def download(repo_id, filename, **more):
        if not (store/repo_id/filename).exists(): raise hub_mixin.EntryNotFoundError(filename)
        return str(store/repo_id/filename)

    monkeypatch.setattr(hub_mixin, 'HfApi', Api)
    monkeypatch.setattr(hub_mixin, 'hf_hub_download', download)
    return store


def test_pushed_and_pulled(hub, tmp_path):
    net = FourStream(views='CC', backbones='mobilenetv2_100').eval()
    net.weights_source = 'ImageNet through timm: mobilenetv2_100.ra_in1k'
    read = load_model(export_model(net, tmp_path/'m', FACTS))
    assert read.push_to_hub('me/cesm') == 'https://huggingface.co/me/cesm'
    pushed = sorted(f.name for f in (hub/'me'/'cesm').iterdir())
    assert pushed == ['README.md', 'config.json', 'model.safetensors']
    for name in pushed:
        assert (hub/'me'/'cesm'/name).read_bytes() == (tmp_path/'m'/name).read_bytes(), name
    message = 'me/cesm is not a folder here, and revision=.* is not a commit'
    for revision in (None, 'main', 'ab'*19):
        with pytest.raises(ValueError, match=message):
            FourStream.from_pretrained('me/cesm', revision=revision)
    pulled = FourStream.from_pretrained('me/cesm', revision='ab'*20)
    assert (pulled.facts, pulled.weights_source) == (FACTS, net.weights_source)
    with torch.no_grad(): assert torch.equal(pulled(breasts()), net(breasts()))


def test_pickle_from_the_hub_is_rejected(hub):
    "A repository with a pickle in place of safetensors is rejected before it is opened."
    net = FourStream(views='CC', backbones='mobilenetv2_100')
    net.push_to_hub('me/cesm')
    (hub/'me'/'cesm'/'model.safetensors').unlink()
    (hub/'me'/'cesm'/'pytorch_model.bin').write_bytes(b'not opened')
    with pytest.raises(ValueError, match='is a pickle, which can hold code'):
        FourStream.from_pretrained('me/cesm', revision='ab'*20)


def test_no_local_path_is_pushed(hub, tmp_path):
    "Of local weights only the folder's name is stored."
    from safetensors.torch import save_file
    import timm
    folder = tmp_path/'home'/'me'/'weights'
    folder.mkdir(parents=True)
    state = timm.create_model('mobilenetv2_100').state_dict()
    save_file(state, folder/'mobilenetv2_100.safetensors')
    net = FourStream(backbones='mobilenetv2_100', pretrained=True, weights_dir=str(folder))
    net.push_to_hub('me/cesm')
    config = json.loads((hub/'me'/'cesm'/'config.json').read_text())
    assert config['weights_source'].startswith('files in weights: mobilenetv2_100 ')
    assert 'pretrained' not in config and 'weights_dir' not in config
    assert str(tmp_path) not in (hub/'me'/'cesm'/'README.md').read_text() + json.dumps(config)


def test_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    net = FourStream(views='CC', backbones='mobilenetv2_100')

    def full(self, folder):
        (Path(folder)/'model.safetensors').write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(FourStream, '_save_pretrained', full)
    with pytest.raises(OSError, match='No space'): export_model(net, tmp_path/'m', FACTS)
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_stop_unless_scratch_is_allowed(tmp_path):
    "Offline without cache: an error on how to get weights; training from scratch only if allowed."
    code = '''
import warnings
from cesm_nb.model import FourStream
try: FourStream(pretrained=True)
except ValueError as e: print(e)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    net = FourStream(pretrained=True, allow_scratch=True)
print([str(w.message) for w in caught if 'FROM SCRATCH' in str(w.message)])
print(net.weights_source)
'''
    env = os.environ | dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path), PYTHONPATH=str(ROOT))
    ran = subprocess.run([sys.executable, '-c', code], env=env, cwd=ROOT, capture_output=True,
                         text=True, timeout=PATIENCE, check=True)
    error, warning, source = ran.stdout.strip().splitlines()
    assert 'no pretrained weights from the hub' in error
    assert 'mobilenetv2_100.safetensors into a folder' in error and 'allow_scratch=True' in error
    assert warning.count('FROM SCRATCH') == 1 and source == 'scratch (weights not found)'


def test_weights_of_version_0_1_0_load():
    "Short stream names, one channel, unnormalised input: the same logits under current names."
    net = FourStream(views='CC', backbones='mobilenetv2_100').eval()
    old = {k.replace('streams.mobilenetv2_100.', 'streams.mobile.'): v
           for k, v in net.state_dict().items()}
    again = FourStream(views='CC', backbones='mobile').eval()
    again.load_state_dict(old)
    with torch.no_grad(): assert torch.equal(again(breasts()), net(breasts()))


@needs_weights
def test_one_epoch_from_imagenet_weights(phantom, tmp_path):
    "One epoch at 64 px on a phantom, reloaded with normalised input; a wrong folder is rejected."
    from cesm_nb.training.inference import load_run
    from cesm_nb.core.settings import make_config
    from cesm_nb.train import fit
    settings = dict(data_root=str(phantom), image_size=64, epochs=1, mixed_precision='no',
                    device='cpu', pretrained=True, backbones='mobilenetv2_100,efficientnet_lite0')
    with pytest.raises(ValueError, match='typo/mobilenetv2_100.safetensors is absent'):
        wrong = dict(weights_dir=f'{WEIGHTS}/typo', run_dir=str(tmp_path/'none'))
        fit(make_config(settings | wrong))
    assert not (tmp_path/'none').exists()
    run = fit(make_config(settings | dict(weights_dir=str(WEIGHTS), run_dir=str(tmp_path/'run'))))
    assert run.config['weights_source'].startswith(f'files in {WEIGHTS.name}: efficientnet_lite0 ')
    net, _ = load_run(tmp_path/'run')
    assert net.settings['normalise_input'] and len(run.history) == 1
