"""What `import cxr_lightning` gives."""

import subprocess
import sys

import pytest

import cxr_lightning
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.types import Condition


def run(code: str) -> str:
    """What a fresh interpreter prints, without the shape checks of the test suite."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_public_names_are_those_of_their_modules():
    assert cxr_lightning.Generator is Generator
    assert cxr_lightning.Condition is Condition
    assert cxr_lightning.UserError is UserError
    assert set(cxr_lightning.__all__) <= set(dir(cxr_lightning))
    assert set(cxr_lightning.__all__) == {*cxr_lightning.HOMES, "__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Genrator'"):
        cxr_lightning.Genrator  # noqa: B018


def test_in_a_fresh_interpreter(products):
    """Nothing heavy is imported before it is needed, and a wrong value is one sentence."""
    said = run(
        "import sys\n"
        "heavy = {'torch', 'numpy', 'pandas', 'lightning', 'torchvision', 'huggingface_hub'}\n"
        "import cxr_lightning\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from cxr_lightning import Generator, UserError\n"
        "print(sorted({'lightning', 'torchvision'} & set(sys.modules)))\n"
        f"generator = Generator.from_pretrained({str(products / 'generator')!r})\n"
        "try:\n"
        "    generator.generate('edema', view='lateral')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    assert said.splitlines() == ["[]", "[]", "view: 'lateral' is not known; use AP or PA."]
