// A zoomed image is moved by dragging it; touch and keyboard scroll it without help. Dragging with the right button, or
// with Shift held, changes the window as workstations do: across its width, up and down its level. A file that is
// dropped beside the drop zone, most likely on the reading area, is read too: else a browser would show it instead.
// While an earlier file is sent, Gradio's drop zone takes no other: the last one that was dropped waits for its turn.
const area = element.closest('#radiograph') || element;
area.tabIndex = 0;
area.setAttribute('role', 'region');
area.setAttribute('aria-label', 'Reading area');
window.addEventListener('dragover', (event) => event.preventDefault());
const input = (zone) => document.querySelector(`${zone} input[type=file]`);
const give = (taker, files) => {
  taker.files = files;
  taker.dispatchEvent(new Event('change', {bubbles: true}));
};
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
const slider = (name) => document.querySelector(`#${name} input[type=number]`);
const slide = (name, value) => {
  const input = slider(name);
  const kept = Math.min(Math.max(value, Number(input.min)), Number(input.max));
  input.value = Math.round(kept * 2) / 2;
  input.dispatchEvent(new Event('input', {bubbles: true}));
};
area.addEventListener('contextmenu', (event) => event.preventDefault());
area.addEventListener('pointerdown', (down) => {
  if (down.pointerType !== 'mouse' || down.button === 1) return;
  const windowing = down.button === 2 || down.shiftKey;
  if (windowing && !document.querySelector('#radiograph img.radiograph')) return;
  const left = area.scrollLeft + down.clientX, top = area.scrollTop + down.clientY;
  const level = Number(slider('level')?.value), width = Number(slider('width')?.value);
  const move = (event) => {
    if (windowing) {
      slide('width', width + (event.clientX - down.clientX) / 4);
      slide('level', level + (event.clientY - down.clientY) / 4);
    } else {
      area.scrollLeft = left - event.clientX;
      area.scrollTop = top - event.clientY;
    }
  };
  window.addEventListener('pointermove', move);
  window.addEventListener('pointerup', () => window.removeEventListener('pointermove', move), {once: true});
});
