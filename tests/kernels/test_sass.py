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
        (32 * FFMA, []),
        (loop(".L_x_1", 32 * FFMA + 3 * LOAD), [32 / 36]),
        (loop(".L_x_1", (COMPUTES - 1) * FFMA), []),
        (loop(".L_x_1", 32 * FFMA + 3 * LOAD, ahead=".L_x_7"), [32 / 37]),
        (
            loop(".L_x_0", 40 * LOAD + loop(".L_x_1", 40 * FFMA + 7 * LOAD) + loop(".L_x_2", 32 * FFMA)),
            [40 / 48, 32 / 33],
        ),
    ],
)
def test_loop_shares(sass, shares):
    assert loop_shares(sass) == shares
