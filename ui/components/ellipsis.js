// A text that does not fit ends in an ellipsis (text-overflow); under the pointer it is shown whole.
document.addEventListener('mouseover', event => {
  const node = event.target;
  const ours = node.dataset && 'whole' in node.dataset;
  if (!node.dataset || (node.title && !ours)) return;
  const cut = getComputedStyle(node).textOverflow === 'ellipsis'
    && node.scrollWidth > node.clientWidth;
  if (cut) {
    node.title = node.value || node.textContent;
    node.dataset.whole = '';
  } else if (ours) {
    node.removeAttribute('title');
    delete node.dataset.whole;
  }
});
