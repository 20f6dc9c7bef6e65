// A CUDA device that does nothing, for a build of torch without CUDA: tensors may then say that they are on `cuda`, and
// autograd runs for them. There are devices, streams and events, but no kernels and no memory. What the tensors hold is
// up to their Python class (FakeTensor, or the pretended tensors of pretend.py).
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

constexpr DeviceIndex kNumDevices = 8;
thread_local DeviceIndex current = 0;

Device on_cuda(DeviceIndex index) {
  return Device(DeviceType::CUDA, index < 0 ? current : index);
}

struct IdleDevice final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  DeviceIndex deviceCount() const noexcept override {
    return kNumDevices;
  }
  Device getDevice() const override {
    return on_cuda(current);
  }
  void setDevice(Device device) const override {
    current = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    current = device.index();
  }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  // One stream per device, so that everything is in order.
  Stream getStream(Device device) const noexcept override {
    return Stream(Stream::DEFAULT, on_cuda(device.index()));
  }
  Stream getDefaultStream(Device device) const override {
    return getStream(device);
  }
  Stream getNewStream(Device device, int) const override {
    return getStream(device);
  }
  Stream exchangeStream(Stream stream) const noexcept override {
    return getStream(stream.device());
  }
  bool queryStream(const Stream&) const override {
    return true;
  }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  // Events have always happened.
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override {
    *event = &current;
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, IdleDevice)

} // namespace

namespace at {

// Torch looks for a class of this name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override {
    return true;
  }
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(DeviceIndex) const override {
    return true;
  }
  DeviceIndex deviceCount() const override {
    return kNumDevices;
  }
  DeviceIndex getCurrentDevice() const override {
    return current;
  }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

} // namespace at
