"""What reading 12,288 floats of a JSON body costs: as the service does it, and with pysimdjson where that is installed.

    python -m benchmarks.serving.json_floats --rounds 7

CPU time, medians of interleaved rounds of 20 bodies; each way gives the same float32 array, which is compared first.
"""

import argparse
import statistics as stats
import sys
import time

import numpy as np
import orjson

from foldserve.service.v2.json_tensor import tensor_from_json

SHAPE = (1, 3, 64, 64)
BODIES = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    entry = {"name": "x", "shape": SHAPE, "datatype": "FP32", "data": values.ravel()}
    body = orjson.dumps({"inputs": [entry]}, option=orjson.OPT_SERIALIZE_NUMPY)

    def service() -> np.ndarray:
        data = orjson.loads(body)["inputs"][0]["data"]
        return tensor_from_json(data, "FP32", SHAPE, "data", may_hold_booleans=False)

    ways = {"orjson alone": lambda: orjson.loads(body), "orjson, checked, to an array": service}
    try:
        import simdjson
    except ImportError:
        pass
    else:
        reader = simdjson.Parser()

        def simd() -> np.ndarray:
            numbers = reader.parse(body)["inputs"][0]["data"].as_buffer(of_type="d")
            return np.frombuffer(numbers, np.float64).astype(np.float32).reshape(SHAPE)

        assert np.array_equal(service(), simd())
        ways["pysimdjson, to an array"] = simd
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            for _ in range(BODIES):
                way()
            times[name].append((time.process_time() - started) / BODIES * 1e6)
    for name, taken in times.items():
        print(f"| {name} | {stats.median(taken):.0f} ({min(taken):.0f} to {max(taken):.0f}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
