"""Write the icon of the site in browser tabs, and the picture that is shown with a shared link.

usage: python tools/make_marks.py
Run it after `results/` has changed, like `tools/make_readme.py`: the picture is the first figure.
`tests/test_site.py` fails if it shows other scores than `results/`.
"""
from pathlib import Path

from cesm_nb.experiments.front_page import lead_scores, plot_lead

ROOT = Path(__file__).resolve().parent.parent
ICON = '''<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="6" fill="#0072B2"/>
<path d="M8 4 A12 12 0 0 1 8 28 Z" fill="#fff"/>
<rect x="11" y="12" width="7" height="7" fill="none" stroke="#D55E00" stroke-width="2"/>
</svg>
'''


def describe_scores(
    scores, # from `lead_scores`
) -> str: # CSV of what the figure shows, rounded as there
    "Describe the picture."
    return scores.round(3).to_csv()


def main():
    "Write `nbs/favicon.svg` and `nbs/social.png`, the latter 1200 by 630 pixels."
    (ROOT/'nbs'/'favicon.svg').write_text(ICON)
    scores = lead_scores((ROOT,))
    fig = plot_lead(scores).figure
    fig.set_size_inches(8, 4.2)
    fig.suptitle('cesm_nb: with lesions outlined, and without', fontweight='bold')
    fig.tight_layout(rect=(0, .11, 1, 1))
    fig.legends[0].set_bbox_to_anchor((.5, .14))
    # what it shows goes into the file, so that a test can tell when it is no longer current
    about = {'Software': None, 'Description': describe_scores(scores)}
    fig.savefig(ROOT/'nbs'/'social.png', dpi=150, metadata=about)


if __name__ == '__main__': main()
