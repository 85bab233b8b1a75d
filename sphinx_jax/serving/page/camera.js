// Takes a photo with the camera of the device.

// Opens the dialog with the camera's video; calls onFile with the photo, or onError.
export async function openCamera(dialog, { onFile, onError }) {
  if (!navigator.mediaDevices) { // Browsers offer it to https and localhost only.
    onError('The camera needs https or localhost; choose a file instead.');
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
  } catch (error) {
    onError(`The camera cannot be used: ${error.message}`);
    return;
  }
  const video = dialog.querySelector('video');
  video.srcObject = stream;
  const take = dialog.querySelector('.take');
  take.disabled = true;
  video.onloadeddata = () => {
    take.disabled = false;
  };
  take.onclick = () => {
    const canvas = document.createElement('canvas');
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext('2d').drawImage(video, 0, 0);
    canvas.toBlob(
      (blob) => onFile(new File([blob], 'photo.jpg', { type: 'image/jpeg' })), 'image/jpeg', 0.95,
    );
    dialog.close();
  };
  dialog.onclose = () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
  dialog.showModal();
}
