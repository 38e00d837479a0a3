"The phantom as a control: an honest pipeline is at chance without a signal and finds a strong one (about two minutes)."

from cesm_nb.stats import interval_table
from cesm_nb.tables import PROBS
from cesm_nb.train import fit, make_config

SETTINGS = dict(protocol='clinical', image_size=64, epochs=6, batch_size=8, lr=5e-4, phantom_patients=120, mixed_precision='no')


def auc(tmp_path, signal):
    "Test AUC with its 95 % interval."
    ran = fit(make_config(SETTINGS | dict(run_dir=str(tmp_path), phantom_signal=signal)))
    test = ran.predictions[ran.predictions.split == 'test']
    return interval_table(test.label.to_numpy(), test[PROBS].to_numpy(), test.patient_id.to_numpy()).loc['auc']


def test_no_signal_no_skill(tmp_path):
    found = auc(tmp_path, 0.)
    assert found.low < .5 < found.high


def test_strong_signal_is_found(tmp_path):
    assert auc(tmp_path, 2.).value > .8
