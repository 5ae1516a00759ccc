import FoundationEssentials
import MirrorModule
import Model
import Testing

@testable import NodeDaemon

@Suite struct PeerMessageTests {
  /// Nothing that cannot be read is left out: the core hears of it, and ends the session.
  @Test func whatCannotBeReadIsSaid() throws {
    let session = SessionID(rawValue: 9)
    let token = [UInt8](try JSONEncoder().encode(PeerMessage.token))
    #expect(ModuleRunner.message(of: token, in: session) == .peerMessage(session, .token))
    for wrong in ["", "{", #"{"dance":{}}"#, #"{"adopted":{}"#] {
      let event = ModuleRunner.message(of: Array(wrong.utf8), in: session)
      #expect(event == .peerMessageUnreadable(session, why: "\(wrong.utf8.count) bytes"))
    }
  }
}
