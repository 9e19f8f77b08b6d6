// In whatever order answers come, nothing of another study than the one in sight is seen. Where an answer was overtaken
// for good, the page asks for the study at hand once more.
let overtaken = 0;
const others = () => {
  const key = document.querySelector('#radiograph [data-of]')?.dataset.of;
  const parts = [...document.querySelectorAll(':is(#findings, #cases, #evidence) [data-of]')];
  for (const part of parts) if (part.hidden !== (part.dataset.of !== key)) part.hidden = !part.hidden;
  return parts.some((part) => part.hidden);
};
const behind = () => others() || document.querySelector('#radiograph .spinner'); // or said to be read, and read long ago
new MutationObserver(() => {
  if (!behind() || overtaken) return;
  overtaken = setTimeout(() => { overtaken = 0; if (behind()) trigger('clear', {}); }, 1500);
}).observe(document.body, {childList: true, subtree: true, attributeFilter: ['data-of', 'hidden']});
