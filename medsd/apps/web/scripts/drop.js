// A file that is dropped beside the drop zone, most likely on the reading area, is read too: else a browser would show it
// instead. While an earlier file is sent, Gradio's drop zone takes no other: the last one that was dropped waits for its turn.
window.addEventListener('dragover', (event) => event.preventDefault());
const input = (zone) => document.querySelector(`${zone} input[type=file]`);
const give = (taker, files) => {
  taker.files = files;
  taker.dispatchEvent(new Event('change', {bubbles: true}));
};
document.addEventListener('click', (event) => { if (event.target.closest('[data-choose]')) input('#upload')?.click(); });
let waiting = null;
const hand = () => {
  if (!waiting || !input('#upload')) return;
  const files = waiting;
  waiting = null;
  give(input('#upload'), files);
};
new MutationObserver(hand).observe(document.body, {childList: true, subtree: true});
window.addEventListener('drop', (event) => {
  if (event.target.closest('#upload, #batch-files')?.querySelector('input[type=file]')) return;
  event.preventDefault();
  if (!event.dataTransfer.files.length) return;
  if (document.querySelector('#batch-files')?.offsetParent) {
    if (input('#batch-files')) give(input('#batch-files'), event.dataTransfer.files);
    return;
  }
  const kept = new DataTransfer();
  kept.items.add(event.dataTransfer.files[0]);
  waiting = kept.files;
  hand();
});
