# SPDX-License-Identifier: Apache-2.0
"""What is said where the mapping is slower than the camera."""

from dark3r_ros.nodes.falling_behind import FallingBehind


def said(rate, taken, seconds=30, watch=None):
    """Advice of every second, of a camera at a rate of which so many images a second are taken."""
    watch = watch or FallingBehind()
    return [watch.advice(float(second), rate * second, (rate - taken) * second) for second in range(seconds)]


def test_what_is_dropped_for_good_is_said_with_the_rate_that_is_kept():
    spoken = said(10, 4)
    assert spoken[1] == ''  # ten images are too few to tell
    assert '60 of the last 100 images were dropped, this machine takes 4.0 a second' in spoken[-1]
    assert 'mapping.network_width' in spoken[-1]


def test_a_few_drops_are_nothing_to_speak_of():
    assert not any(said(10, 9)) and not any(said(1, 0, seconds=15)) and not any(said(30, 30))


def test_what_was_dropped_is_forgotten():
    watch = FallingBehind()
    assert said(10, 4, 15, watch)[-1]
    later = [watch.advice(14.0 + second, 140 + 10 * second, 84) for second in range(1, 15)]
    assert later[0] and not later[-1]
    assert watch.advice(40.0, 5, 3) == ''  # another run, counted anew
