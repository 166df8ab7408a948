"""Below the walk: trust region and clipping, groupings, and why there is no critic. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from grpo_core.analysis.walk import Grouped, Walk
from grpo_core.analysis.walk_picture import RatioPicture
from grpo_core.config.options import GROUPINGS
from ui.render.arithmetic import side_of
from ui.render.learn_walk_picture import pictures
from ui.render.text import esc, signed

ALIKE = {
    "prompt": "The usual choice: only answers to the same question can be compared fairly.",
    "task": "Helps where most groups tie: an easy prompt then lifts, a hard one lowers.",
    "similarity": "Between the two: only prompts with similar words share a mean.",
    "batch": "One mean for all. Easy prompts look good and hard prompts look bad.",
}


def more(walk: Walk, picture: RatioPicture | None, groupings: Mapping[str, Grouped]) -> str:
    """The three sections, with the numbers of the group."""
    return (
        f'<section class="walk-more"><h3>Clipping and a trust region</h3>{_regions(picture)}'
        '</section><section class="walk-more"><h3>With whom is it compared?</h3>'
        f"{_groupings(walk, groupings)}</section>"
        f'<section class="walk-more"><h3>Why is there no critic?</h3>{_critic(walk)}</section>'
    )


def _regions(picture: RatioPicture | None) -> str:
    drawn = pictures(picture) if picture else ""
    return (
        "<p>Both keep a step small, because the sampled texts only tell about policies near the "
        "one that wrote them. <b>Clipping</b> looks at each token alone and takes away its "
        "gradient outside a range. It needs nothing but the loss, and it is only a brake: the "
        "other tokens can still move this one. <b>A trust region</b> (TRPO) limits the mean "
        "KL(old ‖ new) of all tokens to δ. It measures that before it accepts a step, and "
        f"shortens the step if needed. That takes several more passes for each step.</p>{drawn}"
    )


def _groupings(walk: Walk, groupings: Mapping[str, Grouped]) -> str:
    own = walk.config.algorithm.grouping
    rows = "".join(_grouping(name, found, name == own) for name, found in groupings.items())
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Groupings of this step">'
        '<table class="why walk-table wide"><thead><tr><th scope="col">grouping</th>'
        '<th scope="col">compared</th><th scope="col">A of #1, #2, …</th>'
        f'<th scope="col">what it is for</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _grouping(name: str, found: Grouped, own: bool) -> str:
    shown = [
        f'<span class="{side_of(a)}"><b><data value="{a!r}">{signed(a)}</data></b></span>'
        for a in found.advantages[:8]
    ]
    more = " …" if len(found.advantages) > 8 else ""
    mark = ' aria-current="true"' if own else ""
    used = " <small>this run</small>" if own else ""
    return (
        f'<tr{mark}><th scope="row">{esc(name)}{used}</th>'
        f'<td>{found.num_compared}</td><td class="list-of">{" ".join(shown)}{more}</td>'
        f'<td class="words" title="{esc(GROUPINGS[name].help)}">{esc(ALIKE[name])}</td></tr>'
    )


def _critic(walk: Walk) -> str:
    size = len(walk.rows)
    return (
        "<p>An advantage needs something to compare with. <b>PPO</b> trains a second model for "
        "that, the critic, which predicts the reward of every token. It takes memory and passes of "
        "its own, and it is wrong until it has learned. <b>GRPO</b> takes the mean of the "
        f"siblings instead: here {size} completions of one prompt. It is a measurement of what "
        "this policy earns with this prompt, and it needs no training.</p>"
        "<p>The price: every prompt is answered several times, and all tokens of a completion get "
        "the same advantage. A critic could tell which token was the mistake.</p>"
    )
