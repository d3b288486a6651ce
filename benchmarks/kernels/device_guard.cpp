// Let a build of PyTorch for the CPU switch to CUDA devices, which does nothing. PyTorch asks for this even
// when a tensor without data is sliced.

#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
}
