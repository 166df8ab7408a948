// Fills the page from the store. An answer names the outputs that are new; a hole in the list leaves an output as it is.
// Of two questions of one name only the later one's answer is shown: it was asked with what the page held then, so it says all that is new.
window.studioShow = async (name, given, poll) => {
  const now = window.studioShow;
  if (poll && (now.asking || document.hidden)) return [];
  now.asking = now.asking || poll;
  now.asked = now.asked || {};
  const ticket = now.asked[name] = (now.asked[name] || 0) + 1;
  try {
    const answer = await fetch('studio/show', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({name, given})});
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
    if (poll) now.asking = false;
    document.documentElement.dataset.lost = now.failed > 1 ? 'on' : '';
  }
};
