// A file that was made for this visitor goes from the answer into a download; no server keeps it under an address.
const save = () => {
  const link = element.querySelector('a[data-content]');
  if (!link) return;
  const bytes = Uint8Array.from(atob(link.dataset.content), (letter) => letter.charCodeAt(0));
  link.removeAttribute('data-content');
  link.href = URL.createObjectURL(new Blob([bytes], {type: link.type}));
  if (!link.hasAttribute('data-wait')) link.click();
};
// Gradio patches the old link instead of putting a new one.
new MutationObserver(save).observe(element, {childList: true, subtree: true, attributeFilter: ['data-content']});
