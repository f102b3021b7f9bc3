# SPDX-License-Identifier: Apache-2.0
"""Settings of the online mapping pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from dark3r_ros.config import Config, setting


@dataclass(frozen=True)
class MappingConfig(Config):
    """Settings of the online mapping pipeline; pixels are those of the binned planes."""

    binning: int = setting(
        0, 'Side of the block of raw pixels averaged into one value; 0 chooses one for network_width.', minimum=0
    )
    network_width: int = setting(320, 'Width that the automatic binning aims at.', unit='px', minimum=64, maximum=4096)
    rest_frames: int = setting(
        16,
        'Frames that are averaged while the camera stands still, where N of them have 10 log10(N) dB more; 1 never.',
        minimum=1,
        maximum=256,
    )
    rest_snr: float = setting(
        0.0,
        'Signal-to-noise ratio below which frames are averaged while the camera stands still.',
        unit='dB',
        minimum=-40.0,
        maximum=60.0,
    )
    min_matches: int = setting(20, 'Fewest matches that are worth a pose estimate.', minimum=8)
    min_inliers: int = setting(15, 'Fewest correspondences that must agree with a pose.', minimum=6)
    firm_inliers: int = setting(150, 'Inliers above which a frame is matched with the newest keyframe only.', minimum=0)
    min_inlier_share: float = setting(
        0.25, 'Smallest share of the matches that must agree with a pose.', minimum=0.0, maximum=1.0
    )
    tracking_share: float = setting(
        0.1, 'Share of the usual inliers below which a followed pose is not believed.', minimum=0.0, maximum=1.0
    )
    relocalisation_share: float = setting(
        0.25, 'Share of the usual inliers that a lost camera needs to be found again.', minimum=0.0, maximum=1.0
    )
    expected_reach: float = setting(
        0.15,
        'How far from where odometry or the motion so far expects it a landmark is looked for first, as a share of the '
        'picture width; 0 looks everywhere at once.',
        minimum=0.0,
        maximum=1.0,
    )
    expected_share: float = setting(
        0.1,
        'Smallest share of the matches found there that must agree with a pose, as few agree by chance. Where nothing '
        'but the motion so far tells, it is the last resort.',
        minimum=0.0,
        maximum=1.0,
    )
    linked_reach: float = setting(
        0.1,
        'How far from where the pose of a new keyframe expects them the known landmarks of its neighbours are looked '
        'for in it, as a share of the picture width; 0 looks everywhere.',
        minimum=0.0,
        maximum=1.0,
    )
    max_error: float = setting(
        2.0, 'Largest reprojection or epipolar error of an inlier.', unit='px', minimum=0.1, maximum=20.0
    )
    init_parallax: float = setting(
        2.0, 'Median triangulation angle that starts a map.', unit='deg', minimum=0.1, maximum=45.0
    )
    init_inliers: int = setting(40, 'Fewest triangulated matches that start a map.', minimum=10)
    min_parallax: float = setting(
        0.6, 'Smallest triangulation angle of a new landmark.', unit='deg', minimum=0.0, maximum=20.0
    )
    keyframe_overlap: float = setting(
        0.7, 'A frame becomes a keyframe when it sees less than this share of the reference.', minimum=0.0, maximum=1.0
    )
    keyframe_flow: float = setting(
        0.08,
        'A frame becomes a keyframe when its matches moved by more than this share of the picture width.',
        minimum=0.0,
        maximum=1.0,
    )
    track_landmarks: int = setting(
        300,
        'Landmarks of a keyframe that are looked for in a view, spread over the picture; for predictors that can look '
        'for given places.',
        minimum=50,
        maximum=100000,
    )
    window: int = setting(12, 'Keyframes whose poses bundle adjustment may move.', minimum=3, maximum=100)
    window_fixed: int = setting(8, 'Older keyframes that hold the window in place.', minimum=1, maximum=100)
    window_landmarks: int = setting(
        250,
        'Best-seen landmarks of each keyframe that the window adjustment uses; the others follow the poses.',
        minimum=30,
        maximum=100000,
    )
    window_iterations: int = setting(
        6, 'Most steps of the window adjustment for each new keyframe.', minimum=1, maximum=100
    )
    step_seconds: float = setting(
        0.05,
        'Time between frames in which one piece of the work for a new keyframe is done, so that the camera is followed '
        'meanwhile; 0 does all of it at once, as `dark3r map` always does: a recording waits.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
    )
    neighbours: int = setting(6, 'Keyframes that a new keyframe is matched with.', minimum=1, maximum=50)
    whole_neighbours: int = setting(
        2,
        'How many of these, the ones that share most, are matched as whole pictures, which brings up new landmarks; '
        'with `mini` the known landmarks of the others are looked for, in a third of the time.',
        minimum=1,
        maximum=50,
    )
    readout: float = setting(
        0.0,
        'Time from the first to the last row of a picture where the camera has a rolling shutter: how it turns '
        'meanwhile is found with each pose, which is that of the middle row; 0 for a global shutter.',
        unit='s',
        minimum=0.0,
        maximum=0.2,
    )
    camera_height: float = setting(
        0.0,
        'Height of the camera above the ground, which gives metres and holds the unit where no odometry does; the '
        'camera looks ahead, tilted by no more than 25 degrees, and sees the ground; 0 where it is not known.',
        unit='m',
        minimum=0.0,
        maximum=100.0,
    )
    lost_after: int = setting(5, 'Frames in a row without a pose after which the state is lost.', minimum=1)
    young_frames: int = setting(
        10, 'A map that gets lost before so many frames were posed is given up and started again.', minimum=0
    )
    relocalise_keyframes: int = setting(
        400,
        'Older keyframes whose features are kept, in memory or on disk, so that a place can be found again.',
        minimum=4,
        maximum=100000,
    )
    relocalise_per_frame: int = setting(
        4, 'Remembered keyframes that each lost frame is compared with, in turn.', minimum=1, maximum=1000
    )
    submap_after: int = setting(
        10, 'Frames in a row without a pose after which a new submap is tried, to be joined later; 0 never.', minimum=0
    )
    loops: bool = setting(True, 'Close loops and join submaps where a place is recognised.')
    loop_candidates: int = setting(
        3, 'Places that look most like a new keyframe and are compared with it by geometry.', minimum=1, maximum=50
    )
    loop_share: float = setting(
        0.5,
        'Places that are compared with each new keyframe by geometry, on average, so that its work stays the same; '
        'what has begun to agree is seen through at once; 0 sets no bound.',
        minimum=0.0,
        maximum=50.0,
    )
    loop_likeness: float = setting(
        0.75,
        'How alike a place must look, as a share of how alike the keyframe and its neighbours look.',
        minimum=0.0,
        maximum=1.0,
    )
    loop_frames: int = setting(
        3, 'Keyframes that must agree on where they are before a loop is closed.', minimum=1, maximum=20
    )
    loop_agreement: float = setting(
        0.15, 'How far two keyframes may disagree, as a share of the depth of the scene.', minimum=0.0, maximum=2.0
    )
    loop_drift: float = setting(
        0.1, 'Largest correction of a loop, as a share of the way travelled since.', minimum=0.0, maximum=1.0
    )
    retry_frames: int = setting(
        60, 'Frames without a pose that are kept and tried again later.', minimum=0, maximum=10000
    )
    memory_ceiling_mb: int = setting(
        256,
        'Memory that the map may take; beyond it features of older keyframes go to disk.',
        unit='MB',
        minimum=16,
        maximum=1000000,
    )
    spill_folder: str = setting('', 'Folder for features of older keyframes; empty for the temporary folder.')
    max_archived: int = setting(
        1500, 'Older keyframes that keep their landmarks; beyond it only pose and cloud remain.', minimum=10
    )
    max_cloud_points: int = setting(300000, 'Points kept of forgotten keyframes.', minimum=1000)
    final_keyframes: int = setting(
        300, 'All keyframes are refined together at the end when there are no more than these.', minimum=0, maximum=2000
    )
    rematch_keyframes: int = setting(
        100,
        'Keyframes of a map up to which `dark3r map` matches all of it again at the end and adjusts it as `dark3r sfm` '
        'does, which takes about as long as mapping it; with `mini`; 0 never.',
        minimum=0,
        maximum=300,
    )
    rematch_frames: int = setting(
        60,
        'Frames beside keyframes up to which all of a short recording take part in that.',
        minimum=0,
        maximum=300,
    )
    doubtful_share: float = setting(
        0.9,
        'Share of the matches that must agree with the map of such a recording. Below it, or where more than one view '
        'in twenty has no pose, `dark3r map` also starts as `dark3r sfm` does, from all pairs of views, which takes as '
        'long as that, and keeps what more matches agree with; 0 never.',
        minimum=0.0,
        maximum=1.0,
    )
    degraded_snr: float = setting(
        0.0, 'Signal-to-noise ratio below which the state is degraded.', unit='dB', minimum=-40.0, maximum=60.0
    )
    degraded_inliers: int = setting(30, 'Inliers below which the state is degraded.', minimum=0)
