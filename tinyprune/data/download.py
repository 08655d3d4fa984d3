"""Downloads, by the library pooch: with a progress bar, tried again when a connection breaks, and a checked sha256."""

from pathlib import Path

from tinyprune.errors import MissingExtraError, SaveError, TinypruneError, install_command
from tinyprune.io.progress import silent

# Some hosts answer 403 to a library's own user agent.
HEADERS = {"User-Agent": "tinyprune/0.1"}
TIMEOUT_SECONDS = 30


def fetch(url: str, path: Path, *, name: str, sha256: str, otherwise: str = "") -> Path:
    """Make sure that the file of `url` is at `path`, complete and unaltered; download it if it is not.

    Args:
        name: of what is downloaded, for messages.
        sha256: 64 hexadecimal digits.
        otherwise: advice for users without a network, added to that message.

    Raises:
        MissingExtraError: if pooch is not installed.
        TinypruneError: if the network or the server fails, or if what arrives has another hash.
        SaveError: if the file cannot be written.
    """
    try:
        import pooch
        import requests
    except ImportError as error:
        raise MissingExtraError(f"to download {name} needs pooch: {install_command('download')}") from error
    pooch.get_logger().setLevel("ERROR")
    registry = {path.name: f"sha256:{sha256}"}
    store = pooch.create(path.parent, base_url="", registry=registry, retry_if_failed=2)
    store.urls[path.name] = url
    download = pooch.HTTPDownloader(not silent(), headers=HEADERS, timeout=TIMEOUT_SECONDS)
    try:
        store.fetch(path.name, downloader=download)
    except (requests.RequestException, ValueError) as error:
        said = " ".join(str(error).split())
        raise TinypruneError(
            f"cannot download {name} from {url}: {said}; try again, "
            f"put the file by hand at {path.absolute()}, {otherwise}".rstrip(", ")
        ) from error
    except OSError as error:
        raise SaveError(
            f"cannot read or write {path}: {error.strerror or error}; set TINYPRUNE_CACHE to another folder"
        ) from error
    return path
