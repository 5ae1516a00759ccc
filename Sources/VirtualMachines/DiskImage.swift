import Foundation
import HostSystem

/// One file of a disk, as `qemu-img` sees it.
public struct DiskImage: Codable, Sendable, Hashable {
  public var path: String
  public var format: String
  /// Bytes the guest sees.
  public var virtualBytes: UInt64
  /// Bytes it takes on the host's disk.
  public var actualBytes: UInt64
  /// The backing file as written in the image, relative or absolute; nil = none.
  public var backingReference: String?
  /// The same as an absolute path, or as a URL if it is not a file.
  public var backingPath: String?
  public var backingFormat: String?
  /// qcow2 with its data in another file.
  public var dataFile: String?
  public var isEncrypted: Bool
  public init(
    path: String, format: String, virtualBytes: UInt64 = 0, actualBytes: UInt64 = 0, backingReference: String? = nil,
    backingPath: String? = nil, backingFormat: String? = nil, dataFile: String? = nil, isEncrypted: Bool = false
  ) {
    self.path = path
    self.format = format
    self.virtualBytes = virtualBytes
    self.actualBytes = actualBytes
    self.backingReference = backingReference
    self.backingPath = backingPath
    self.backingFormat = backingFormat
    self.dataFile = dataFile
    self.isEncrypted = isEncrypted
  }
}

/// `qemu-img`, which knows the formats.
public enum DiskImageTool {
  /// More files in one chain are refused.
  public static let chainCountMax = 64
  private static let infoTimeout: Duration = .seconds(30)
  private static let rebaseTimeout: Duration = .seconds(60)

  /// The disk's file and its backing files, top first. `format`: what the domain says; nil = raw, as libvirt takes it.
  /// Throws `HypervisorError`.
  public static func chain(of path: String, format: String?) throws(HypervisorError) -> [DiskImage] {
    let output = try run(
      ["qemu-img", "info", "--backing-chain", "--output=json", "-U", "-f", format ?? "raw", path], path: path,
      timeout: infoTimeout)
    let images = try parse(output, path: path)
    guard images.count <= chainCountMax else {
      throw HypervisorError(.unsupported, "read the disk", domain: path, "its backing chain has \(images.count) files")
    }
    return images
  }

  /// Writes another backing file into the image's header; the data is not touched. Repeating it changes nothing.
  public static func setBacking(
    of path: String, format: String, to reference: String, backingFormat: String
  ) throws(HypervisorError) {
    _ = try run(
      ["qemu-img", "rebase", "-u", "-f", format, "-F", backingFormat, "-b", reference, path], path: path,
      timeout: rebaseTimeout)
  }

  private static func run(_ arguments: [String], path: String, timeout: Duration) throws(HypervisorError) -> [UInt8] {
    do {
      let result = try ChildProcess.run(arguments, timeout: timeout)
      guard result.status == 0 else {
        let text = result.errorText.split(whereSeparator: \.isNewline).joined(separator: " ")
        throw HypervisorError(.failed, arguments.prefix(2).joined(separator: " "), domain: path, text)
      }
      return result.output
    } catch let error as HypervisorError {
      throw error
    } catch let error as HostError where error.code == .timedOut {
      throw HypervisorError(.timedOut, arguments.prefix(2).joined(separator: " "), domain: path, "\(error)")
    } catch {
      throw HypervisorError(.failed, arguments.prefix(2).joined(separator: " "), domain: path, "\(error)")
    }
  }

  static func parse(_ output: [UInt8], path: String) throws(HypervisorError) -> [DiskImage] {
    do {
      return try JSONDecoder().decode([Info].self, from: Data(output)).map(\.image)
    } catch {
      throw HypervisorError(.failed, "qemu-img info", domain: path, "its answer cannot be read: \(error)")
    }
  }

  private struct Info: Decodable {
    struct Specific: Decodable {
      struct Contents: Decodable {
        var dataFile: String?
        enum CodingKeys: String, CodingKey { case dataFile = "data-file" }
      }
      var data: Contents?
    }
    var filename: String
    var format: String
    var virtualSize: UInt64
    var actualSize: UInt64?
    var backing: String?
    var fullBacking: String?
    var backingFormat: String?
    var encrypted: Bool?
    var specific: Specific?
    enum CodingKeys: String, CodingKey {
      case filename, format, encrypted
      case virtualSize = "virtual-size"
      case actualSize = "actual-size"
      case backing = "backing-filename"
      case fullBacking = "full-backing-filename"
      case backingFormat = "backing-filename-format"
      case specific = "format-specific"
    }
    var image: DiskImage {
      DiskImage(
        path: filename, format: format, virtualBytes: virtualSize, actualBytes: actualSize ?? 0,
        backingReference: backing, backingPath: fullBacking ?? backing, backingFormat: backingFormat,
        dataFile: specific?.data?.dataFile, isEncrypted: encrypted ?? false)
    }
  }
}
