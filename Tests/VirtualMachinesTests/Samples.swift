// Definitions as the usual tools make them, shortened in places that vmha does not look at.

/// virt-install on Debian: qcow2, an empty cdrom, the default network.
let sampleDebian = """
  <domain type='kvm'>
    <name>web</name>
    <uuid>0F3D6E6A-5B0E-4C57-8A4C-0E6D7D1F8A01</uuid>
    <metadata>
      <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
        <libosinfo:os id="http://debian.org/debian/12"/>
      </libosinfo:libosinfo>
    </metadata>
    <memory unit='KiB'>2097152</memory>
    <vcpu placement='static'>2</vcpu>
    <os>
      <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
      <boot dev='hd'/>
    </os>
    <features><acpi/><apic/></features>
    <cpu mode='host-passthrough' check='none' migratable='on'/>
    <on_poweroff>destroy</on_poweroff>
    <devices>
      <emulator>/usr/bin/qemu-system-x86_64</emulator>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2' discard='unmap'/>
        <source file='/var/lib/libvirt/images/web.qcow2'/>
        <target dev='vda' bus='virtio'/>
        <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
      </disk>
      <disk type='file' device='cdrom'>
        <driver name='qemu' type='raw'/>
        <target dev='sda' bus='sata'/>
        <readonly/>
      </disk>
      <interface type='network'>
        <mac address='52:54:00:aa:bb:01'/>
        <source network='default'/>
        <model type='virtio'/>
      </interface>
      <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
      <graphics type='spice' autoport='yes' passwd='s&quot;cret &amp; more'/>
      <redirdev bus='usb' type='spicevmc'/>
      <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    </devices>
  </domain>
  """

/// virt-manager, Windows: UEFI with secure boot, TPM, a mounted cdrom, a bridge.
let sampleWindows = """
  <domain type='kvm'>
    <name>win 11</name>
    <uuid>0f3d6e6a-5b0e-4c57-8a4c-0e6d7d1f8a02</uuid>
    <os>
      <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
      <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
      <nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/win11_VARS.fd</nvram>
    </os>
    <devices>
      <disk type='file' device='disk'>
        <driver name='qemu' type='raw' cache='none' io='native'/>
        <source file='/srv/vm/it&apos;s &quot;mine&quot;.img'/>
        <target dev='sda' bus='sata'/>
      </disk>
      <disk type='file' device='cdrom'>
        <driver name='qemu' type='raw'/>
        <source file='/srv/iso/win11.iso'/>
        <target dev='sdb' bus='sata'/>
        <readonly/>
      </disk>
      <interface type='bridge'><source bridge='br0'/><model type='e1000e'/></interface>
      <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    </devices>
  </domain>
  """

/// Terraform or Cockpit: volumes of a pool, one of them without a driver; firmware chosen by libvirt.
let sampleVolumes = """
  <domain type='kvm'>
    <name>db</name>
    <uuid>0f3d6e6a-5b0e-4c57-8a4c-0e6d7d1f8a03</uuid>
    <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os>
    <devices>
      <disk type='volume' device='disk'>
        <driver name='qemu' type='qcow2'/>
        <source pool='default' volume='db-root.qcow2'/>
        <backingStore type='file'>
          <format type='qcow2'/>
          <source file='/var/lib/libvirt/images/base.qcow2'/>
          <backingStore type='file'>
            <format type='raw'/>
            <source file='/var/lib/libvirt/images/base0.raw'/>
            <backingStore/>
          </backingStore>
        </backingStore>
        <target dev='vda' bus='virtio'/>
      </disk>
      <disk type='volume' device='disk'>
        <source pool='default' volume='db-data.raw' mode='host'/>
        <target dev='vdb' bus='virtio'/>
      </disk>
      <interface type='direct'><source dev='enp3s0' mode='bridge'/></interface>
      <interface type='user'/>
    </devices>
  </domain>
  """

/// Everything that cannot follow a VM to another host.
let sampleTied = """
  <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>tied</name>
    <uuid>0f3d6e6a-5b0e-4c57-8a4c-0e6d7d1f8a04</uuid>
    <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
    <devices>
      <disk type='block' device='disk'>
        <driver name='qemu' type='raw'/><source dev='/dev/vg0/tied'/><target dev='vda' bus='virtio'/>
      </disk>
      <disk type='network' device='disk'>
        <source protocol='rbd' name='pool/image'><host name='ceph'/></source><target dev='vdb' bus='virtio'/>
      </disk>
      <disk type='file' device='disk'>
        <source file='/srv/quorum.raw'/><target dev='vdc' bus='virtio'/><shareable/>
      </disk>
      <disk type='file' device='disk'>
        <source file='/srv/scratch.raw'/><target dev='vdd' bus='virtio'/><transient/>
      </disk>
      <disk type='file' device='disk'>
        <source file='/srv/luks.raw'><encryption format='luks'/></source><target dev='vde' bus='virtio'/>
      </disk>
      <disk type='nvme' device='disk'><source type='pci' managed='yes'/><target dev='vdf' bus='virtio'/></disk>
      <disk type='file' device='floppy'><source file='/srv/a.img'/><target dev='fda' bus='fdc'/></disk>
      <filesystem type='mount'><driver type='virtiofs'/><source dir='/srv/share'/><target dir='s'/></filesystem>
      <hostdev mode='subsystem' type='pci' managed='yes'>
        <source><address domain='0x0000' bus='0x06' slot='0x02' function='0x0'/></source>
      </hostdev>
      <redirdev bus='usb' type='tcp'/>
      <memory model='nvdimm'><source><path>/srv/nvdimm</path></source></memory>
      <interface type='ethernet'><rom file='/srv/rom.bin'/></interface>
    </devices>
    <qemu:commandline><qemu:arg value='-fw_cfg'/></qemu:commandline>
  </domain>
  """

/// A kernel of the host, as small appliances are run.
let sampleKernel = """
  <domain type='qemu'>
   <name>g1</name><uuid>6c616200-0000-4000-8000-000000000001</uuid><memory unit='MiB'>96</memory><vcpu>1</vcpu>
   <os><type arch='x86_64' machine='pc'>hvm</type><kernel>/srv/guest/vmlinuz</kernel><initrd>/srv/guest/initrd</initrd>
    <cmdline>console=ttyS0 quiet</cmdline></os>
   <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' error_policy='report'/><source file='/var/lib/libvirt/images/g1.raw'/><target dev='vda' bus='virtio'/></disk>
    <interface type='bridge'><mac address='52:54:00:77:00:01'/><source bridge='br0'/><model type='virtio'/></interface>
   </devices>
  </domain>
  """
