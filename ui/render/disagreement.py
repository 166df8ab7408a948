"""Advantages that another trainer recorded, beside those that its rewards give. Pure."""

from __future__ import annotations

from grpo_core.analysis.what_if import Answer
from grpo_core.config.options import ADVANTAGES
from ui.render.arithmetic import reward_text
from ui.render.recorded_config import Config, estimator_of, source_of
from ui.render.text import esc, signed

DIGITS = 4
# Source.estimator -> why this estimator
WHY_ESTIMATOR = {
    "settings": "The run’s settings name it.",
    "found": "It gives the recorded advantages of other groups of the run.",
    "assumed": "The run does not say which one it used; this is the usual one.",
}


def disagreement(answer: Answer, config: Config) -> str:
    """Both numbers of every completion, the estimator that is assumed, and its formula."""
    name, source = estimator_of(config), source_of(config)
    trainer = esc(source.trainer if source else "another trainer")
    estimator = source.estimator if source else ""
    formula = ADVANTAGES[name].formula if name in ADVANTAGES else ""
    rows = "".join(
        f'<tr><th scope="row">#{r.position + 1}</th><td>{reward_text(r.reward, 3)}</td>'
        f"<td><b>{signed(r.advantage, DIGITS)}</b></td>"
        f"<td><b>{signed(r.advantage_then, DIGITS)}</b></td>"
        f"<td>{signed(r.advantage - r.advantage_then, DIGITS)}</td></tr>"
        for r in answer.rollouts
    )
    return (
        '<section class="disagreement" aria-label="Recorded and recomputed advantages">'
        f'<h2>Recorded and recomputed</h2><p class="note">Recomputed with {esc(name)}: '
        f"<code>A = {esc(formula)}</code>. {WHY_ESTIMATOR.get(estimator, '')} The page shows what "
        f"{trainer} recorded; its policy was trained on that.</p>"
        '<div class="scroll" tabindex="0" role="region" '
        'aria-label="Both advantages, by completion">'
        '<table class="why"><thead><tr><th scope="col"><span class="sr">completion</span></th>'
        '<th scope="col">reward</th><th scope="col">A recorded</th>'
        '<th scope="col">A recomputed</th><th scope="col">difference</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )
