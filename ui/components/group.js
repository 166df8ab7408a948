// Left and right walk the groups of the step while the focus is in the group, but not while a text is being scrolled or selected.
element.addEventListener('keydown', event => {
  if (!['ArrowLeft', 'ArrowRight'].includes(event.key) || event.altKey || event.ctrlKey || event.metaKey || event.target.closest('pre, input')) return;
  event.preventDefault();
  element.querySelector(`[data-do=walk][data-by='${event.key === 'ArrowLeft' ? -1 : 1}']`)?.click();
});
// A refresh writes the attributes that the server knows; what a person switched stands on the page's root.
watch('value', () => window.studioToggles?.());
