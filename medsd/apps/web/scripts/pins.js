element.addEventListener('click', (event) => {
  const pin = event.target.closest('button[data-pin]'), unpin = event.target.closest('button[data-unpin]');
  if (pin) trigger('select', {pin: Number(pin.dataset.pin)});
  if (unpin) trigger('select', {unpin: Number(unpin.dataset.unpin)});
});
