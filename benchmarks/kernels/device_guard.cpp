// Switch to CUDA devices by doing nothing, in builds of PyTorch with and without CUDA. PyTorch asks for this even
// when a tensor without data is sliced.

#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
}
