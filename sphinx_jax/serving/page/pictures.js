// Reads images of files, the clipboard and what is dropped.

const EXIF = /Exif\0\0|eXIf|EXIF/; // As JPEG, PNG and WebP mark it.
const EDGE = 2048; // Most pixels of the longer edge; models see fewer.

// Returns {url: data URL, width, height, name}; settings: of /page/settings.json.
//
// A file that the server takes is sent as it is. One that is large, of another format, or that may
// be turned by an EXIF orientation is drawn upright, so that the model sees what the page shows.
export async function readPicture(file, settings) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name}: the browser cannot read this image`);
  }
  const { width, height } = bitmap;
  const fits = file.size <= settings.image_bytes && Math.max(width, height) <= EDGE;
  if (fits && settings.image_types.includes(file.type) && !EXIF.test(await latin1(file))) {
    return { url: await dataUrl(file), width, height, name: file.name };
  }
  const scale = Math.min(1, EDGE / Math.max(width, height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext('2d').drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const type = file.type === 'image/jpeg' ? 'image/jpeg' : 'image/png';
  const url = canvas.toDataURL(type, 0.95);
  return { url, width: canvas.width, height: canvas.height, name: file.name };
}

// Calls onFiles with the image files of a file input, the clipboard, or a drop on the page.
export function watchFiles(input, onFiles) {
  input.addEventListener('change', () => {
    onFiles([...input.files]);
    input.value = ''; // The same file may be chosen again.
  });
  document.addEventListener('paste', (event) => {
    const files = imagesOf(event.clipboardData);
    if (files.length) {
      event.preventDefault();
      onFiles(files);
    }
  });
  document.addEventListener('dragover', (event) => {
    if (event.dataTransfer.types.includes('Files')) event.preventDefault();
  });
  document.addEventListener('drop', (event) => {
    if (!event.dataTransfer.types.includes('Files')) return;
    event.preventDefault();
    onFiles(imagesOf(event.dataTransfer));
  });
}

function imagesOf(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith('image/'));
}

async function latin1(file) {
  return new TextDecoder('latin1').decode(await file.arrayBuffer());
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name}: ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}
