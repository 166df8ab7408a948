// The Playground's question travels in a hidden value: {run, id, take, turns}, where `turns` says
// after which turn to pause, 0: never. It changes with every press, and an answer is shown only
// while its question stands there: an answer that was overtaken never appears under another run or
// another prompt.
window.studioAsk = (run, take = '', turns = 0) =>
  JSON.stringify({run, id: `${Date.now()} ${Math.random()}`, take, turns});

// “Next turn”: the same question with one turn more, while its answers go on; else from the first.
window.studioNextTurn = (run, ...values) => {
  const playing = window.studioPlaying, key = JSON.stringify([run, ...values]);
  const goesOn = playing.key === key && document.querySelector('#play-answers [data-waits]');
  Object.assign(playing, {key, turns: goesOn ? playing.turns + 1 : 1});
  return studioAsk(run, '', playing.turns);
};

// The question whose answers are being written. `revision`: of what the page shows of them.
window.studioPlaying = {
  id: '', revision: 0, ends: false, open: false, key: '', turns: 0,
  begin(id) {
    Object.assign(this, {id, revision: 0, ends: false});
    document.documentElement.dataset.playing = id ? 'on' : '';
  },
  end() { this.ends = true; },
  wanted() { return this.ends ? -1 : this.revision; }, // -1: stop
};

window.studioWaits = ask => {
  const asked = ask ? JSON.parse(ask) : {};
  studioPlaying.begin(asked.id || '');
  if (asked.turns > 1) return; // the turns so far stay on show
  return ask
    ? '<p class="note" role="status">Answering. A model that is not in memory is loaded first.</p>'
    : '';
};

// Twice a second while a question is open: shows what is written so far. An answer that arrives
// after the whole one, or after another question, is dropped.
window.studioStreams = async look => {
  const playing = window.studioPlaying, id = playing.id;
  if (!id || playing.open || document.hidden) return [];
  playing.open = true;
  try {
    const [html] = await look();
    if (html === undefined || playing.id !== id) return [];
    playing.revision = Number(/data-revision="(\d+)"/.exec(html)?.[1] || 0);
    return [html];
  } finally {
    playing.open = false;
  }
};

// “Keep” of a card: its answer, its prompt and who wrote it, as JSON with a number that is new each
// time. Of an answer in turns it is what the policy said, without calls and observations.
window.studioKeepAnswer = () => {
  const {run, step, key} = studioPressed;
  const button = [...document.querySelectorAll('#play-answers [data-do=keep]')]
    .find(b => b.dataset.key === key);
  const {prompt, right, before} = button.closest('.played').dataset, answer = button.dataset.text;
  button.textContent = 'Kept ✓';
  return JSON.stringify({run, step: Number(step), prompt, right, before, answer, n: Date.now()});
};

// When another run comes into view, the question and the answers of the one before are cleared.
window.studioOtherRun = (run, ask) =>
  !ask || JSON.parse(ask).run === run ? [] : ['', ''];

// got: the server's reply. A prompt that was taken is shown, and then answered, unless the reply
// says why it waits for a press of "Answer". Returns text, right answer, taken, ask and answers.
window.studioAnswered = (got, ask, taken, run) => {
  const reply = JSON.parse(got || '{}'), asked = JSON.parse(ask || '{}');
  if (reply.id !== asked.id || asked.run !== run) return [];
  const values = [];
  studioPlaying.begin('');
  values[4] = reply.html;
  if (reply.text === undefined) {
    values[2] = JSON.stringify({...JSON.parse(taken || '{}'), waits: false});
    return values;
  }
  [values[0], values[1]] = [reply.text, reply.right];
  values[2] = JSON.stringify({text: reply.text, next: reply.next, waits: !!reply.html});
  if (!reply.html) [values[3], values[4]] = [studioAsk(run), undefined];
  return values;
};

window.studioNoAnswer = () => {
  studioPlaying.begin('');
  return '<p class="problem" role="alert">The server did not answer. ' +
    'Press Answer to ask again.</p>';
};
