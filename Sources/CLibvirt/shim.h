#ifndef VMHA_CLIBVIRT_SHIM_H
#define VMHA_CLIBVIRT_SHIM_H

#include <stddef.h>

#include <libvirt/libvirt-qemu.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

// Each event has its own callback type, which libvirt casts to one: the casts are macros.
static inline int vmha_register_lifecycle(
  virConnectPtr connection, virConnectDomainEventCallback callback, void *context, virFreeCallback release) {
  return virConnectDomainEventRegisterAny(
    connection, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(callback), context, release);
}

static inline int vmha_register_io_error(
  virConnectPtr connection, virConnectDomainEventIOErrorReasonCallback callback, void *context,
  virFreeCallback release) {
  return virConnectDomainEventRegisterAny(
    connection, NULL, VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, VIR_DOMAIN_EVENT_CALLBACK(callback), context, release);
}

#endif
