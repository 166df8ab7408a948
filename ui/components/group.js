// The left and right arrow keys open the previous and next group while the focus is in the group,
// but not in a text that scrolls or in an input.
element.addEventListener('keydown', event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest('pre, input')) return;
  event.preventDefault();
  element.querySelector(`[data-do=walk][data-by='${by}']`)?.click();
});
// A refresh replaces the attributes of toggle buttons; their state is kept on the page's root.
watch('value', () => window.studioToggles?.());
