// Fills the page from the store. An answer is a list of [output, value]; an output that is not in
// it stays as it is.
// Of two requests for the same refresh only the later one's answer is shown: it was sent with the
// newer state of the page.
window.studioRefresh = async (name, given, kind) => {
  const state = window.studioRefresh;
  // The address's place was shown as a whole, and nobody has chosen anything since.
  if (kind === 'change' && state.arrived) return [];
  if (kind === 'poll' && (state.pending || document.hidden)) return [];
  // A poll that overtook the first answer would show another run than the address names.
  const blocks = kind === 'poll' || kind === 'first';
  if (blocks) state.pending = kind;
  state.tickets = state.tickets || {};
  const ticket = state.tickets[name] = (state.tickets[name] || 0) + 1;
  try {
    const answer = await fetch('studio/show', {
      method: 'POST',
      headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({name, given}),
      signal: AbortSignal.timeout(20000), // after a sleep a connection may never answer
    });
    // The server was restarted and no longer knows this session.
    if (answer.status === 401) window.location.reload();
    // The server cannot read its file, and says why.
    document.body.dataset.trouble = answer.status === 503 ? await answer.text() : '';
    if (!answer.ok) throw new Error(answer.status);
    const values = [];
    for (const [output, value] of await answer.json()) values[output] = value;
    state.failed = 0;
    if (kind === 'first') state.arrived = true;
    return ticket === state.tickets[name] ? values : [];
  } catch {
    state.failed = (state.failed || 0) + 1;
    return [];
  } finally {
    if (blocks) state.pending = '';
    document.documentElement.dataset.lost = state.failed > 1 ? 'on' : '';
  }
};
