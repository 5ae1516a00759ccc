import Glibc
import HostSystem
import Model
import Testing

/// A libvirtd of its own in new mount, network, process and other namespaces, as a host without systemd. Ended with the scope.
final class PrivateLibvirtd {
  let folder: String
  private let keeper: Int32

  init(folder: String) throws {
    self.folder = folder
    for name in ["run", "etc", "lib", "log/qemu", "cache", "etc/hooks"] {
      try DurableFile.makeFolder("\(folder)/\(name)")
    }
    try DurableFile.write(
      Array("auth_unix_rw = \"none\"\nhost_uuid = \"6c616200-0000-4000-8000-0000000000ff\"\n".utf8),
      to: "\(folder)/etc/libvirtd.conf")
    let qemu = "stdio_handler = \"file\"\nsecurity_driver = \"none\"\nuser = \"root\"\ngroup = \"root\"\n"
    try DurableFile.write(Array(qemu.utf8), to: "\(folder)/etc/qemu.conf")
    try DurableFile.write(Array(Self.script.utf8), to: "\(folder)/init.sh", mode: 0o755)
    keeper = try ChildProcess.spawnDetached(
      [
        "unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "bash",
        "\(folder)/init.sh", folder,
      ], log: "\(folder)/init.log")
  }

  private static let script = """
    set -e
    mount --make-rprivate /
    mount -t proc proc /proc
    # Detached, not covered: libvirt would find the cgroups of the host in the list of mounts.
    umount -l -R /sys
    mount -t sysfs sysfs /sys
    mount --bind $1/run /run
    mkdir -p /run/libvirt
    mount --bind $1/etc /etc/libvirt
    mkdir -p /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
    mount --bind $1/lib /var/lib/libvirt
    mount --bind $1/log /var/log/libvirt
    mount --bind $1/cache /var/cache/libvirt
    ip link set lo up
    libvirtd -d -p /run/libvirtd.pid
    trap : TERM
    while :; do sleep 3600 & wait $!; done
    """

  var uri: String { "qemu+unix:///system?socket=\(folder)/run/libvirt/libvirt-sock" }

  /// Runs a shell command inside.
  @discardableResult
  func shell(_ command: String) throws -> String {
    let children = try DurableFile.read("/proc/\(keeper)/task/\(keeper)/children")
    let inner = String(decoding: children, as: UTF8.self).split(separator: " ").first.map(String.init) ?? ""
    let result = try ChildProcess.run(
      ["nsenter", "-t", inner, "-m", "-p", "-n", "-u", "-i", "bash", "-c", command], timeout: .seconds(30))
    guard result.status == 0 else {
      throw HostError(.invalid, "shell", path: command, "status \(result.status): \(result.errorText)")
    }
    return result.outputText
  }

  func end() {
    kill(keeper, SIGKILL)
    // The namespace's mounts and processes go with its first process; the folder can be removed then.
    var pause = 100
    while kill(keeper, 0) == 0, pause > 0 {
      usleep(20_000)
      pause -= 1
    }
  }
}
