"""Names for files of another form than the expected one, by their first bytes."""

import re

# Image formats of the OpenAI API. The MIME type of each is image/ and its name in lower case.
API_IMAGES = ('PNG', 'JPEG', 'GIF', 'WebP')

# First bytes -> what is often found in place of an image or of JSON.
_FORMS = tuple(
  (re.compile(pattern, re.DOTALL | re.IGNORECASE), name)
  for pattern, name in (
    (rb'....ftyp(hei|hev|mif1|msf1)', 'HEIC'),
    (rb'....ftypavi[fs]', 'AVIF'),
    (rb'....ftyp|\x1aE\xdf\xa3', 'a video'),
    (rb'\xff\x0a|\0\0\0\x0cJXL ', 'JPEG XL'),
    (rb'(\xef\xbb\xbf)?\s*<(!--.*?-->\s*<)?(!doctype )?html', 'an HTML page'),
    (rb'(\xef\xbb\xbf)?\s*<(.*<)?svg\b', 'SVG'),
    (rb'(\xef\xbb\xbf)?\s*<\?xml', 'XML'),
    (rb'version https://git-lfs', 'a git-lfs pointer'),
    (rb'(data:image/.*,)?(iVBORw0KGgo|/9j/)', 'base64 text'),
    (rb'%PDF', 'PDF'),
    (rb'%!PS|\xc5\xd0\xd3\xc6', 'EPS'),
    (rb'\x76\x2f\x31\x01', 'OpenEXR'),
    (rb'.{128}DICM', 'DICOM'),
    (rb'\x93NUMPY', 'a NumPy array'),
    (rb'PAR1', 'a Parquet file'),
    (rb'PK\x03\x04|\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf', 'a compressed archive'),
    (rb'\0+\Z', 'zero bytes only'),
    (rb'II\*\0|MM\0\*', 'TIFF'),
    (rb'\xff\xd8\xff', 'JPEG'),
    (rb'\x89PNG', 'PNG'),
    (rb'GIF8', 'GIF'),
    (rb'RIFF....WEBP', 'WebP'),
  )
)


def name(data: bytes) -> str | None:
  """Returns the form of a file that begins with some bytes, None if it is not known."""
  return next((form for pattern, form in _FORMS if pattern.match(data[:1024])), None)
