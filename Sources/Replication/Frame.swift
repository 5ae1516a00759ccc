import Model

/// Bounds of what one frame may hold. Both ends refuse more, before they reserve memory for it.
public enum FrameLimits {
  /// The fixed header.
  public static let headerBytes = 44
  /// The structured part after the header; the largest is an extended attribute with its name.
  public static let fieldsBytesMax = 66 * 1024
  /// File contents or a core's message after the fields.
  public static let dataBytesMax = 1024 * 1024
  public static let frameBytesMax = headerBytes + fieldsBytesMax + dataBytesMax
  /// What `FrameHead.write`, `.resyncData`, `.resyncZero`, `.flushRequest`, `.flushAnswer` and `.keepalive` need at
  /// most.
  public static let smallHeadBytesMax = headerBytes + 32
  /// Ranges in one acknowledgement.
  public static let rangesCountMax = 512
  /// What `FrameHead.acknowledge` needs for a full batch.
  public static let acknowledgeHeadBytesMax = headerBytes + 2 + rangesCountMax * 12
  public static let sentenceBytesMax = 1024
  /// Ranges in one `differing` frame.
  public static let differingRangesMax = 4096
  /// Entries and attributes of one manifest together.
  public static let manifestCountMax = 4_000_000
  /// Largest offset a file can have, so that offset + length never overflows.
  public static let fileBytesMax = UInt64(Int64.max)
}

/// Raw values are wire values: never reuse one.
public enum FrameKind: UInt8, Sendable, Hashable, CaseIterable {
  case hello = 1
  case agree = 2
  case keepalive = 3
  case failure = 4
  case bye = 5
  case coreMessage = 6
  case operation = 16
  case acknowledge = 17
  case flushRequest = 18
  case flushAnswer = 19
  case dataFlushRequest = 20
  case manifestBegin = 32
  case manifestEntry = 33
  case manifestAttribute = 34
  case manifestEnd = 35
  case resyncData = 36
  case resyncZero = 37
  case resyncAcknowledge = 38
  case differing = 39
  case differingEnd = 40
  case resyncCompare = 41
  case resyncCompared = 42
  case verifyBegin = 48
  case verify = 49
  case verified = 50

  /// These carry a sequence number, counted from 1 in each session and direction: operations and flushes in one row,
  /// resync pieces in another, questions of a verification in a third. All others carry zero.
  public var isNumbered: Bool {
    switch self {
    case .operation, .flushRequest, .dataFlushRequest, .flushAnswer, .resyncData, .resyncZero, .resyncCompare,
      .resyncCompared, .verify, .verified:
      true
    default: false
    }
  }
  public var mayCarryData: Bool {
    switch self {
    case .operation, .resyncData, .coreMessage: true
    default: false
    }
  }
  /// Sent before the session is agreed, with session zero.
  var isBeforeSession: Bool { self == .hello }
  /// May be sent before or after the session is agreed.
  var isAtAnyTime: Bool { self == .failure || self == .bye }
}

public struct FrameFlags: OptionSet, Hashable, Sendable {
  public let rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }
  /// The header's data checksum is filled in. TLS already authenticates the bytes on the way; this also covers the
  /// memory at both ends.
  public static let dataChecksum = FrameFlags(rawValue: 1)
  public static let known: FrameFlags = [.dataChecksum]
}

public struct FrameHeader: Hashable, Sendable {
  public static let magic: UInt32 = 0x6168_6D76  // "vmha" in the order of the wire
  public static let layout: UInt8 = 1

  public var kind: FrameKind
  public var flags: FrameFlags
  /// R1: the session this frame belongs to; zero only before one is agreed.
  public var session: SessionID
  public var sequence: UInt64
  public var fieldsLength: Int
  public var dataLength: Int
  public var fieldsChecksum: UInt32
  public var dataChecksum: UInt32

  public var frameBytes: Int { FrameLimits.headerBytes + fieldsLength + dataLength }
}

/// Consecutive sequence numbers, both ends included.
public struct SequenceRange: Hashable, Sendable {
  public var first: UInt64
  public var last: UInt64
  public init(_ first: UInt64, through last: UInt64) {
    self.first = first
    self.last = last
  }
  public init(_ single: UInt64) { self.init(single, through: single) }
}

/// First frame of each end on a new connection.
public struct Hello: Hashable, Sendable {
  /// Protocol versions this end speaks, both included.
  public var versionMin: UInt16
  public var versionMax: UInt16
  public var node: NodeID
  /// Fresh random, never zero.
  public var nonce: UInt64
  public var module: ModuleName
  /// UUID of the cluster, as in the certificates; 1 to 64 bytes of text.
  public var cluster: String
  public init(
    versionMin: UInt16 = SessionHandshake.versionMin, versionMax: UInt16 = SessionHandshake.versionMax, node: NodeID,
    nonce: UInt64, module: ModuleName, cluster: String
  ) {
    self.versionMin = versionMin
    self.versionMax = versionMax
    self.node = node
    self.nonce = nonce
    self.module = module
    self.cluster = cluster
  }
}

/// Why an end gives the session up; it is over when this is sent or received.
public enum FailureCode: UInt16, Sendable, Hashable {
  /// The handshake was refused.
  case refused = 1
  /// The other end broke the protocol.
  case protocolBroken = 2
  /// R11: this end's disk failed; the errno is given.
  case diskError = 3
  /// The trees differ where they have to be the same.
  case diverged = 4
  /// This end is not in the role the frame needs.
  case wrongRole = 5
}

/// What a frame says. `operation(.write)`, `resyncData` and `coreMessage` are followed by data, which is kept outside
/// (see `FrameView.data`).
public enum FrameBody: Hashable, Sendable {
  case hello(Hello)
  /// The session and version this end computed from both hellos; the session is in the header.
  case agree(version: UInt16)
  case keepalive
  case failure(FailureCode, errno: Int32, sentence: String)
  case bye(sentence: String)
  case coreMessage
  case operation(FileOperation)
  case acknowledge([SequenceRange])
  /// nil = every file and directory of the tree.
  case flushRequest(FileID?)
  /// The contents of one file and what is needed to read them back (fdatasync); times and rights may stay behind.
  case dataFlushRequest(FileID)
  /// The sequence is that of the request; errno 0 = durable.
  case flushAnswer(errno: Int32)
  /// With `identityOnly` the trees are already the same; it only tells the ids (roles were swapped in this session).
  /// `key` is fresh random: both ends compute the hashes of this resync with it.
  case manifestBegin(identityOnly: Bool, key: HashKey)
  case manifestEntry(ManifestEntry)
  /// An extended attribute of the entry sent before.
  case manifestAttribute(FileID, name: AttributeName, value: [UInt8])
  /// Numbers of entries and attributes sent since `manifestBegin`.
  case manifestEnd(entries: UInt32, attributes: UInt32)
  case resyncData(FileID, offset: UInt64)
  /// The range holds zeros: punch it, keep the size.
  case resyncZero(FileID, offset: UInt64, length: UInt64)
  case resyncAcknowledge([SequenceRange])
  /// From the target, after it made its tree like the manifest: what of this file has to be looked at, by its write-intent map.
  /// A file that is not named, or only in part, is the source's to compare as a whole. Ranges of one file may come in several frames.
  case differing(FileID, FileContent)
  /// All were named.
  case differingEnd
  /// Hashes of consecutive blocks of `ResyncPlan.blockBytes` from `offset` on, at this place of the stream; the last block may
  /// be shorter. Answered by `resyncCompared`.
  case resyncCompare(FileID, offset: UInt64, length: UInt32, hashes: [BlockHash])
  /// The sequence is that of the comparison; bit n = block n differs here.
  case resyncCompared(differing: UInt32)
  /// From the primary, in sync: the hashes of the questions that follow are under this key, which is fresh random.
  case verifyBegin(key: HashKey)
  /// Answered by `verified`, at this place of the stream. Changes nothing.
  case verify(FileID, VerifyQuestion)
  /// The sequence is that of the question.
  case verified(VerifyAnswer)

  public var kind: FrameKind {
    switch self {
    case .hello: .hello
    case .agree: .agree
    case .keepalive: .keepalive
    case .failure: .failure
    case .bye: .bye
    case .coreMessage: .coreMessage
    case .operation: .operation
    case .acknowledge: .acknowledge
    case .flushRequest: .flushRequest
    case .dataFlushRequest: .dataFlushRequest
    case .flushAnswer: .flushAnswer
    case .manifestBegin: .manifestBegin
    case .manifestEntry: .manifestEntry
    case .manifestAttribute: .manifestAttribute
    case .manifestEnd: .manifestEnd
    case .resyncData: .resyncData
    case .resyncZero: .resyncZero
    case .resyncAcknowledge: .resyncAcknowledge
    case .differing: .differing
    case .differingEnd: .differingEnd
    case .resyncCompare: .resyncCompare
    case .resyncCompared: .resyncCompared
    case .verifyBegin: .verifyBegin
    case .verify: .verify
    case .verified: .verified
    }
  }
}

/// The bytes from the peer are not a frame of this protocol. The session must end: where the next frame starts is
/// unknown.
public struct FrameError: Error, Hashable, Sendable, CustomStringConvertible {
  public enum Code: Hashable, Sendable {
    case notAFrame
    case unknownLayout
    case unknownKind
    case unknownFlags
    case headerChecksum
    case fieldsChecksum
    case dataChecksum
    case tooLong
    case badSession
    case badSequence
    case badLength
    case badValue
    case truncatedFields
    case surplusFields
  }
  public var code: Code
  public var message: String
  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }
  public var description: String { message }
}
