"""Loops in the GPU's own code, as nvdisasm prints it."""

import pytest

from tinyprune.kernels.sass import COMPUTES, loop_shares

FFMA = "        /*00a0*/                   FFMA R1, R2.reuse, R3, R1 ;\n"
LOAD = "        /*00b0*/              @!P1 LDS.128 R4, [R8+0x10] ;\n"


def loop(label, body, ahead=""):
    """A loop that ends with a branch to its label; `ahead`: a label that is branched to before it comes."""
    skip = f"        /*0010*/               @P1 BRA `({ahead}) ;\n{ahead}:\n" if ahead else ""
    return f"{label}:\n{skip}{body}        /*00c0*/               @P0 BRA `({label}) ;\n"


@pytest.mark.parametrize(
    ("sass", "shares"),
    [
        ("", []),
        (16 * FFMA, []),
        (loop(".L_x_1", 16 * FFMA + 3 * LOAD), [16 / 20]),
        (loop(".L_x_1", (COMPUTES - 1) * FFMA), []),
        (loop(".L_x_1", 16 * FFMA + 3 * LOAD, ahead=".L_x_7"), [16 / 21]),
        (
            loop(".L_x_0", 40 * LOAD + loop(".L_x_1", 24 * FFMA + 7 * LOAD) + loop(".L_x_2", 16 * FFMA)),
            [24 / 32, 16 / 17],
        ),
    ],
)
def test_loop_shares(sass, shares):
    assert loop_shares(sass) == shares
