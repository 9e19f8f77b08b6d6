// Grey values in the browser, for all that shows pictures: 12 bits in 16, the lower byte first, as in the memory of every
// browser. The page names them, and a name is good once (see greys.py). Null where they do not come.
const take = async (source) => {
  const {greys, ...about} = source.dataset;
  source.removeAttribute('data-greys');
  const [width, height] = about.size.split(' ').map(Number);
  const bytes = await fetch(`greys/${greys}`).then((answer) => answer.ok && answer.arrayBuffer()).catch(() => null);
  return bytes ? {...about, width, height, values: new Uint16Array(bytes), pixels: new ImageData(width, height)} : null;
};
const shade = (canvas, picture, {level, width, inverted}) => {
  const table = new Uint32Array(4096), black = level - width / 2;
  for (let grey = 0; grey < 4096; grey++) {
    const part = Math.min(Math.max((grey / 4095 - black) / width, 0), 1);
    const shown = Math.round(255 * (inverted ? 1 - part : part));
    table[grey] = 0xff000000 | shown << 16 | shown << 8 | shown;
  }
  const target = new Uint32Array(picture.pixels.data.buffer), greys = picture.values;
  for (let i = 0; i < greys.length; i++) target[i] = table[greys[i]];
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext('2d').putImageData(picture.pixels, 0, 0);
};
const keep = (value, least, most) => Math.min(Math.max(value, least), most);
