# SPDX-License-Identifier: Apache-2.0
"""The part of TensorRT's interface that our backend uses, over ONNX Runtime and plain memory.

It is as strict as the real one where that matters: addresses and input shapes must be set, shapes must lie within the
profile, an engine of other bytes is refused with None.
"""

import ctypes
import json
from types import SimpleNamespace

import numpy as np
import onnxruntime

__version__ = '10.0.fake'
builds = []


class Logger:
    WARNING = 1

    def __init__(self, level):
        self.level = level


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class BuilderFlag:
    TF32 = 'tf32'


class Network:
    def __init__(self, flags):
        self.flags, self.path, self.inputs = flags, None, []

    @property
    def num_inputs(self):
        return len(self.inputs)

    def get_input(self, index):
        return self.inputs[index]


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def parse_from_file(self, path):
        try:
            session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        except Exception:
            self.errors.append('In node -1 (parse): INVALID_GRAPH')
            return False
        self.network.path = path
        for tensor in session.get_inputs():
            shape = [-1 if isinstance(n, str) else n for n in tensor.shape]
            self.network.inputs.append(SimpleNamespace(name=tensor.name, shape=shape))
        return True


class Profile(dict):
    def set_shape(self, name, smallest, best, largest):
        self[name] = (smallest, best, largest)


class Builder:
    def __init__(self, logger):
        pass

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network(flags)

    def create_optimization_profile(self):
        return Profile()

    def create_builder_config(self):
        profiles, flags = [], {BuilderFlag.TF32}
        return SimpleNamespace(
            profiles=profiles, flags=flags, add_optimization_profile=profiles.append, clear_flag=flags.discard
        )

    def build_serialized_network(self, network, config):
        assert not config.flags
        (profile,) = config.profiles
        assert set(profile) == {tensor.name for tensor in network.inputs}
        builds.append(network.path)
        return memoryview(json.dumps({'path': network.path, 'profile': profile}).encode())


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        try:
            content = json.loads(plan)
        except ValueError:
            return None
        return SimpleNamespace(create_execution_context=lambda: Context(content))


class Context:
    def __init__(self, content):
        self.profile = content['profile']
        self.session = onnxruntime.InferenceSession(content['path'], providers=['CPUExecutionProvider'])
        self.shapes, self.addresses = {}, {}

    def set_input_shape(self, name, shape):
        smallest, _, largest = self.profile[name]
        assert all(a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True)), shape
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        zeros = {key: np.zeros(shape, np.float32) for key, shape in self.shapes.items()}
        return self.session.run([name], zeros)[0].shape

    def _memory(self, name, shape):
        count = int(np.prod(shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name])).reshape(shape)

    def execute_async_v3(self, stream):
        assert stream == 7
        names = [o.name for o in self.session.get_outputs()]
        results = self.session.run(names, {n: self._memory(n, s).copy() for n, s in self.shapes.items()})
        for name, value in zip(names, results, strict=True):
            assert name in self.addresses
            self._memory(name, value.shape)[...] = value
        return True
