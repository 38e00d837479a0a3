"The phantom as a control: chance without a signal; an easy signal is learned (two minutes)."
import numpy as np
import pytest
import yaml

from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.stats.intervals import bootstrap_weights
from cesm_nb.stats.scores import score, weighted_scores
from cesm_nb.core.terms import PROBS
from cesm_nb.core.settings import make_config
from cesm_nb.train import fit
from conftest import ROOT

SETTINGS = dict(protocol='clinical', image_size=64, epochs=4, batch_size=8, lr=1e-3,
                mixed_precision='no', backbones='mobilenetv2_100', n_jobs=1)


def above_chance(tmp_path, signal):
    "Test AUC above chance, in standard errors over patients."
    root = make_phantom(tmp_path/'phantom', 120, signal=signal, clinical=min(1., signal),
                        size_px=100, progress=False)
    ran = fit(make_config(SETTINGS | dict(data_root=str(root), run_dir=str(tmp_path/'run'))))
    test = ran.predictions[ran.predictions.split == 'test']
    label, patients = test.label.to_numpy(), test.patient_id.to_numpy()
    weights = np.r_[np.ones((1, len(test))), bootstrap_weights(patients, 500, 0)]
    value, *draws = weighted_scores(label, test[PROBS].to_numpy(), weights, names=('auc',))['auc']
    print(f'AUC {value:.3f}, standard error {np.nanstd(draws):.3f}')
    return (value - .5)/np.nanstd(draws)


def test_no_signal_gives_chance(tmp_path):
    "Neither pixels nor age nor density predict the label, so held-out AUC must be near chance."
    assert abs(above_chance(tmp_path, 0.)) < 4


@pytest.fixture(scope='module')
def easy(module_path):
    "The phantom of `make reproduce`, README and quickstart."
    smoke = yaml.safe_load((ROOT/'configs'/'smoke.yaml').read_text())
    n, signal = smoke['phantom_patients'], smoke['phantom_signal']
    return smoke, make_phantom(module_path/'phantom', n, signal=signal, progress=False)


@pytest.mark.parametrize('protocol', ['paper', 'clinical'])
def test_demonstration_learns(easy, tmp_path, protocol):
    "Macro AUC of at least 0.9 on the test breasts, with the settings of the README's phantom run."
    smoke, root = easy
    own = dict(protocol=protocol, data_root=str(root), run_dir=str(tmp_path), device='cpu')
    test = fit(make_config(smoke | own)).predictions.query("split == 'test'")
    assert score(test.label.to_numpy(), test[PROBS].to_numpy())['auc'] >= .9
