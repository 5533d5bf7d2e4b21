"""`randomness.Held`: numbers of the global generators after each renewal."""

import json
import subprocess
import sys

import pytest

from support.lean import CHILD

RENEW = """
import json, random, sys
package = type(sys)("_flashpool")
package.__path__ = [{child!r}]
sys.modules["_flashpool"] = package
from _flashpool.renewal import randomness

if not {in_memory}:
    randomness._HEAD += 1
random.gauss(0, 1)
held = randomness.Held([], (), seeds_random=True)
assert bool(held._twisters) == {in_memory}
found = []
for _ in range(3):
    held.renew_globals()
    twin = random.Random()
    twin.setstate(random.getstate())
    numbers = [random.gauss(0, 1), *(random.getrandbits(32) for _ in range(1300))]
    assert numbers == [twin.gauss(0, 1), *(twin.getrandbits(32) for _ in range(1300))]
    found.append(numbers)
print(json.dumps(found))
"""


@pytest.mark.parametrize("in_memory", [True, False])
def test_each_renewal_gives_different_numbers_from_a_random_state(in_memory):
    source = RENEW.format(child=str(CHILD), in_memory=in_memory)
    done = subprocess.run(
        [sys.executable, "-I", "-c", source], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len({tuple(numbers) for numbers in found}) == len(found)
    for numbers in found:
        # About half of the bits are set; the tolerance is 16 standard deviations.
        assert 0.48 < sum(number.bit_count() for number in numbers[1:]) / 1300 / 32 < 0.52
