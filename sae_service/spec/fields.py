"""Fields of a stream that more than one part of the service finds wrong, as JSON pointers in the job's spec."""

MODEL_NAME = "/stream/model/name"
DATASET_PATH = "/stream/dataset/path"
COLUMN = "/stream/dataset/column"
CHAT = "/stream/dataset/chat"
HELD_OUT_SPLIT = "/stream/dataset/held_out_split"
