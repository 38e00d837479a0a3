"""Test of the audit: phantoms with one leak at a time, and the network itself.

On a phantom without visible lesions, any signal comes from a leak. Each leak of synthetic.phantom
must move the rung that closes it, and no other; without a leak no rung may exceed chance; with
visible lesions both protocols must find them.
"""
import pytest
from joblib import Parallel, delayed

from cesm_nb.leakage.audit import check_clinical, find_leaks
from cesm_nb.core.settings import PROTOCOLS
from cesm_nb.experiments.aggregate import paired_differences, score_variants
from cesm_nb.leakage.ladder import WALK, ladder, walk
from cesm_nb.synthetic.phantom import LEAKS, make_phantom
from cesm_nb.stats.intervals import interval_table
from cesm_nb.core.terms import PROBS
from cesm_nb.core.settings import make_config
from cesm_nb.train import fit
from conftest import WEIGHTS, needs_weights

CLOSES = dict(twin='split_unit', region='roi_source', density='density_missing',
              view='mask_missing_views')
NO_LESIONS = dict(signal=0., clinical=0.)
PHANTOMS = {
    'none': NO_LESIONS | dict(leaks=()), **{k: NO_LESIONS | dict(leaks=(k,)) for k in LEAKS},
    'blind': NO_LESIONS, 'clear': dict(signal=2.)}
PLANTED = {'clinical with regions': PROTOCOLS['clinical'] | dict(roi_source='annotation')}
DETECTED = 'region', 'blind' # phantoms on which the planted leak must be detected


def score_phantom(folder, name):
    "Return the scores and paired steps of the ladder on one phantom."
    root = make_phantom(folder/name, 100, seed=1, size_px=100, progress=False, **PHANTOMS[name])
    variants = ladder() | (PLANTED if name in DETECTED else {})
    seeds = 0, 1, 2, 3 # with two, an interval is too uncertain
    pooled = walk(root, folder/f'{name}-tensors', variants, seeds=seeds)
    rungs = list(ladder())[:5]
    pairs = tuple(zip(rungs, rungs[1:]))
    if name in DETECTED: pairs += (('clinical', 'clinical with regions'),)
    table = lambda t: t[t.score == 'auc'][['value', 'low', 'high']]
    return table(score_variants(pooled, 500)), table(paired_differences(pooled, pairs, 500))


@pytest.fixture(scope='module')
def results(module_path):
    "Results of all phantoms, two at a time."
    scored = Parallel(2)(delayed(score_phantom)(module_path, name) for name in PHANTOMS)
    return dict(zip(PHANTOMS, scored))


def assert_at_chance(scores, name):
    "Raise if the interval lies wholly above chance."
    value, low, high = scores.value[name], scores.low[name], scores.high[name]
    assert low < .5, f'{name}: AUC {value:.2f} [{low:.2f}, {high:.2f}] is above chance'


def test_rungs_are_at_chance_without_leaks(results):
    for name in ladder(): assert_at_chance(results['none'][0], name)


@pytest.mark.parametrize('leak', LEAKS)
def test_each_leak_moves_only_its_rung(results, leak):
    scores, steps = results[leak]
    own = WALK[CLOSES[leak]]
    assert scores.low['paper'] > .5 or leak == 'density' and scores.low['split by patient'] > .5
    for change, step in steps.iloc[:4].iterrows():
        if change.endswith(f'-> {own}'): assert step.high < 0 and step.value < -.08, change
        else: assert abs(step.value) < .08, change
    if leak != 'density': assert_at_chance(scores, 'clinical')


def test_without_signal_only_paper_exceeds_chance(results):
    scores, _ = results['blind']
    assert scores.low['paper'] > .6
    assert_at_chance(scores, 'clinical')


def test_both_protocols_find_visible_lesions(results):
    scores, _ = results['clear']
    assert scores.low['paper'] > .75 and scores.low['clinical'] > .75


def test_planted_leak_in_clinical_is_detected(results):
    "By its settings, and by its score on a phantom without visible lesions."
    check_clinical(make_config(dict(protocol='clinical')))
    with pytest.raises(ValueError, match="roi_source='annotation'"):
        check_clinical(make_config(dict(protocol='clinical', roi_source='annotation')))
    for k, v in PROTOCOLS['paper'].items(): # each switch of the paper's protocol
        assert len(find_leaks(make_config({'protocol': 'clinical', k: v}))) == 1, k
    for name in DETECTED:
        scores, steps = results[name]
        with pytest.raises(AssertionError, match='clinical with regions: AUC .* is above chance'):
            assert_at_chance(scores, 'clinical with regions')
        assert steps.low['clinical -> clinical with regions'] > .1


@needs_weights
def test_network_uses_regions_without_visible_lesions(tmp_path):
    "Four pretrained streams, the paper's protocol; test_signal.py tests the clinical protocol."
    root = make_phantom(tmp_path/'phantom', 160, signal=0., clinical=0., size_px=100,
                        progress=False)
    settings = dict(protocol='paper', image_size=64, epochs=3, batch_size=8, lr=5e-4,
                    data_root=str(root), backbones='mobilenetv2_100,efficientnet_lite0',
                    pretrained=True, weights_dir=str(WEIGHTS), mixed_precision='no',
                    run_dir=str(tmp_path/'run'))
    predictions = fit(make_config(settings)).predictions
    test = predictions[predictions.split == 'test']
    table = interval_table(test.label.to_numpy(), test[PROBS].to_numpy(),
                           test.patient_id.to_numpy())
    auc = table.loc['auc']
    print(f'AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]')
    assert auc.low > .5
