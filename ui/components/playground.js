// The Playground's question travels in a hidden value: {run, id, take}. It changes with every
// press, and an answer is shown only while its question stands there: an answer that was overtaken
// never appears under another run or another prompt.
window.studioAsk = (run, take = '') =>
  JSON.stringify({run, id: `${Date.now()} ${Math.random()}`, take});

window.studioWaits = ask => ask
  ? '<p class="note" role="status">Answering. A model that is not in memory is loaded first.</p>'
  : '';

// When another run comes into view, the question and the answers of the one before are cleared.
window.studioOtherRun = (run, ask) =>
  !ask || JSON.parse(ask).run === run ? [] : ['', ''];

// got: the server's reply. A prompt that was taken is shown, and then answered, unless the reply
// says why it waits for a press of "Answer". Returns text, right answer, taken, ask and answers.
window.studioAnswered = (got, ask, taken, run) => {
  const reply = JSON.parse(got || '{}'), asked = JSON.parse(ask || '{}');
  if (reply.id !== asked.id || asked.run !== run) return [];
  const values = [];
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

window.studioNoAnswer = () =>
  '<p class="problem" role="alert">The server did not answer. Press Answer to ask again.</p>';
