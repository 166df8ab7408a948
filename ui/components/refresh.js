// Fills the page from the store. An answer names the outputs that are new; a hole in the list leaves an output as it is.
// Of two questions of one name only the later one's answer is shown: it was asked with what the page held then, so it says all that is new.
window.studioShow = async (name, given, kind) => {
  const now = window.studioShow;
  if (kind === 'poll' && (now.asking || document.hidden)) return [];
  if (kind) now.asking = kind; // a poll that overtook the first answer would show another run than the address names
  now.asked = now.asked || {};
  const ticket = now.asked[name] = (now.asked[name] || 0) + 1;
  try {
    const answer = await fetch('studio/show', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({name, given}),
      signal: AbortSignal.timeout(20000)}); // a connection that fell asleep never answers
    if (answer.status === 401) window.location.reload(); // the server was started again, and knows nobody
    if (!answer.ok) throw new Error(answer.status);
    const filled = [];
    for (const [place, value] of await answer.json()) filled[place] = value;
    now.failed = 0;
    return ticket === now.asked[name] ? filled : [];
  } catch {
    now.failed = (now.failed || 0) + 1;
    return [];
  } finally {
    if (kind) now.asking = '';
    document.documentElement.dataset.lost = now.failed > 1 ? 'on' : '';
  }
};
