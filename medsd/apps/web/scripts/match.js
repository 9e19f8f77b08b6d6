// In whatever order answers come, nothing of another study than the one in sight is seen.
const match = () => {
  const key = document.querySelector('#radiograph [data-of]')?.dataset.of;
  for (const part of document.querySelectorAll(':is(#findings, #cases, #evidence) [data-of]')) {
    const other = part.dataset.of !== key;
    if (part.hidden !== other) part.hidden = other;
  }
};
new MutationObserver(match).observe(document.body, {childList: true, subtree: true, attributeFilter: ['data-of']});
