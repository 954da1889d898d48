"""Data that others collected: published datasets and recorded ones, as memory-mapped replay buffers."""

from rlbook.datasets.atari_dqn import AtariDQN
from rlbook.datasets.base import Dataset, PublishedDataset, trajectory, write_dataset
from rlbook.datasets.d4rl import D4RL
from rlbook.datasets.download import DownloadError, File
from rlbook.datasets.gen_dgrl import GenDGRL
from rlbook.datasets.lerobot import LeRobot
from rlbook.datasets.minari import Minari, to_minari
from rlbook.datasets.open_x import OpenX
from rlbook.datasets.openml import OpenML
from rlbook.datasets.record import record
from rlbook.datasets.roboset import Roboset
from rlbook.datasets.vd4rl import VD4RL

__all__ = [
    "D4RL",
    "VD4RL",
    "AtariDQN",
    "Dataset",
    "DownloadError",
    "File",
    "GenDGRL",
    "LeRobot",
    "Minari",
    "OpenML",
    "OpenX",
    "PublishedDataset",
    "Roboset",
    "record",
    "to_minari",
    "trajectory",
    "write_dataset",
]
