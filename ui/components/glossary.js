// Shows the entry that the address names, once for each address: the person may scroll away.
let shown = '';
window.studioTerm = () => {
  const query = new URLSearchParams(window.location.search);
  const at = query.get('tab') === 'learn' && query.get('part') === 'glossary' && query.get('at');
  if (!at) { shown = ''; return; }
  const term = element.querySelector(`[data-term="${CSS.escape(at)}"]`);
  if (!term || !term.clientHeight && term.dataset.found !== 'no') return; // not here, or not in view yet
  for (const other of element.querySelectorAll('[aria-current]')) other.removeAttribute('aria-current');
  term.setAttribute('aria-current', 'true');
  delete term.dataset.found; // a search may have hidden it
  term.scrollIntoView({block: 'center'});
  term.focus({preventScroll: true});
};
watch('value', () => requestAnimationFrame(window.studioTerm));
requestAnimationFrame(window.studioTerm);
