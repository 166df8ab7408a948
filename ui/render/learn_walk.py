"""The walk through one group: introduction, group, steps, and the screen in view. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo_core.analysis.walk_picture import RatioPicture
from grpo_core.store import WalkableGroup
from ui.render import learn_walk_group as group_screens
from ui.render import learn_walk_loss as loss_screens
from ui.render import learn_walk_update as update_screen
from ui.render.learn_walk_cells import Drawn, Screen
from ui.render.place import Place
from ui.render.text import esc, shorten

PROMPT_CHARS = 60
INTRO = """
<div class="walk-intro"><div><h3>In plain words</h3><p>A model answers the same question several
times. GRPO is a coach who compares these attempts with each other, not with a perfect rider. An
attempt that did better than the others becomes more likely. One that did worse becomes less
likely. Nobody has to write the perfect answer; it is enough to say which of two is better. If all
attempts are equally good, there is nothing to compare, and the model learns nothing from this
question.</p></div><div><h3>With the formula</h3><p>For each prompt the policy samples G
completions. The rubric gives each a reward r, and <code>A = (r − mean)/(std + 1e-4)</code> is its
advantage; all its tokens share it. The loss is the mean over tokens of
<code>−min(w·A, clip(w, 1 − ε, 1 + ε)·A) + kl_coef·KL</code>. Here <code>w = p/p_old</code> is the
token’s ratio: its probability now, divided by that before this batch. KL is the distance to the
reference, the model before training. One step of the optimiser follows, then the next prompts. The
walk shows each of these numbers for one group.</p></div></div>
"""


Draw = Callable[[Screen, RatioPicture | None], Drawn]


@dataclass(frozen=True, slots=True)
class Stage:
    """One screen: its name in the address, its title, and what draws it."""

    name: str
    title: str
    draw: Draw


def _without_picture(draw: Callable[[Screen], Drawn]) -> Draw:
    return lambda screen, picture: draw(screen)


STAGES = (
    Stage("prompt", "Prompt", _without_picture(group_screens.prompt)),
    Stage("completions", "Completions", _without_picture(group_screens.completions)),
    Stage("scores", "Scores × weights", _without_picture(group_screens.scores)),
    Stage("rewards", "Rewards", _without_picture(group_screens.rewards)),
    Stage("advantages", "Mean, std, advantages", _without_picture(group_screens.advantages)),
    Stage("ratio", "Ratio and clip", loss_screens.ratio),
    Stage("kl", "KL", _without_picture(loss_screens.kl)),
    Stage("loss", "Loss", _without_picture(loss_screens.loss)),
    Stage("update", "What the update did", _without_picture(update_screen.update)),
)
NAMES = tuple(stage.name for stage in STAGES)


def head(place: Place, screen: str, candidates: Sequence[WalkableGroup], run: str) -> str:
    """Which group, and the steps of the walk.

    candidates: groups to choose from. run: what the run is called, if it is not the one in view.
    """
    chosen = str(place)
    options = [(f"{c.step}/{c.position}", c.prompt) for c in candidates]
    if chosen not in dict(options):
        options.insert(0, (chosen, ""))
    listed = "".join(_option(at, prompt, at == chosen) for at, prompt in options)
    of = f' <span class="note">of {esc(run)}</span>' if run else ""
    inspect = f'<a data-place href="{href(place)}">Open in Inspect</a>' if not run else ""
    index = NAMES.index(screen)
    steps = "".join(_step(i, stage, i == index) for i, stage in enumerate(STAGES))
    return (
        f'<form class="walk-which" onsubmit="return false"><label class="knob">'
        f'<span>Group</span><select name="group">{listed}</select></label>{of}{inspect}</form>'
        f'<nav class="walk-steps" aria-label="Steps of the walk" data-group="{chosen}" '
        f'data-order="{" ".join(NAMES)}"><ol>{steps}</ol></nav>'
        f'<div class="walk-title"><h3 id="walk-title" aria-live="polite">'
        f"{index + 1} · {esc(STAGES[index].title)}</h3>{_ways(index)}</div>"
    )


def href(place: Place) -> str:
    """The address of a group in Inspect."""
    return f"?tab=inspect&amp;step={place.step}&amp;group={place.position + 1}"


def link(place: Place) -> str:
    """A line that leads from a group to its walk."""
    return (
        f'<p class="note"><a data-place href="?tab=learn&amp;part=walk&amp;at={place}">'
        "Walk through this group, step by step</a></p>"
    )


def _option(at: str, prompt: str, chosen: bool) -> str:
    step, _, position = at.partition("/")
    text = f"step {int(step):,}, group {int(position) + 1}"
    if prompt:
        text += f": {shorten(' '.join(prompt.split()), PROMPT_CHARS)}"
    return f'<option value="{at}"{" selected" if chosen else ""}>{esc(text)}</option>'


def _step(index: int, stage: Stage, here: bool) -> str:
    current = ' aria-current="step"' if here else ""
    return (
        f'<li><button type="button" data-do="go" data-screen="{stage.name}"{current}>'
        f"<i>{index + 1}</i><span>{esc(stage.title)}</span></button></li>"
    )


def screen(shown: Screen, name: str, picture: RatioPicture | None) -> Drawn:
    return STAGES[NAMES.index(name)].draw(shown, picture)


def _ways(index: int) -> str:
    def way(by: int, word: str) -> str:
        inside = 0 <= index + by < len(STAGES)
        title = f' title="{esc(STAGES[index + by].title)}"' if inside else ' aria-disabled="true"'
        button = f'<button type="button" class="quiet" data-do="go" data-by="{by}"'
        return f"{button}{title}>{word}</button>"

    return f'<span class="tools walk-ways">{way(-1, "← Previous")}{way(1, "Next →")}</span>'
