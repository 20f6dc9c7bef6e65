import torch

from internvl.infer.feature_cache import FeatureCache


def features(num_floats, value=0.0):
    return torch.full((num_floats,), value)


def test_the_least_recently_used_go_first():
    cache = FeatureCache(max_bytes=12)
    for key in "abc":
        cache.put(key, features(1))
    assert cache.get("a") is not None
    cache.put("d", features(1))
    assert cache.get("b") is None
    assert [cache.get(key) is not None for key in "acd"] == [True, True, True]


def test_the_limit_holds_in_bytes():
    cache = FeatureCache(max_bytes=40)
    for key in range(20):
        cache.put(key, features(key % 5 + 1))
        assert cache.num_bytes <= 40
    assert cache.num_bytes == sum(cache.get(k).nbytes for k in range(20) if cache.get(k) is not None)


def test_replacing_counts_once():
    cache = FeatureCache(max_bytes=100)
    cache.put("a", features(4))
    cache.put("a", features(2, 7.0))
    assert (len(cache), cache.num_bytes) == (1, 8)
    assert cache.get("a").tolist() == [7.0, 7.0]


def test_too_large_features_are_not_kept_and_push_nothing_out():
    cache = FeatureCache(max_bytes=8)
    cache.put("a", features(2))
    cache.put("b", features(3))
    assert cache.get("a") is not None
    assert cache.get("b") is None


def test_a_limit_of_zero_keeps_nothing():
    cache = FeatureCache(max_bytes=0)
    cache.put("a", features(1))
    assert len(cache) == 0


def test_a_cleared_cache_has_all_its_room_again():
    cache = FeatureCache(max_bytes=8)
    cache.put("a", features(2))
    cache.clear()
    assert (len(cache), cache.num_bytes, cache.get("a")) == (0, 0, None)
    cache.put("b", features(2))
    assert cache.get("b") is not None
